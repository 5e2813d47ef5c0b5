"""Figures of requests and models for Prometheus."""
