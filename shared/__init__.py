"""What the API and the workers would be wrong to disagree about."""
