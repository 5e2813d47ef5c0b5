"""The sample `digits`: a small network for single digits, trained here in under a minute.

It recognises 99.7 % of the held-out fifth of scikit-learn's handwriting, bright on dark or dark on
bright (`tests/samples/test_sample_digits.py` measures it again on every run).
"""

from samples.digits.model_directory import make
from samples.digits.pictures import held_out, write_pictures

__all__ = ["held_out", "make", "write_pictures"]
