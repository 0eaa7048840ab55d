"""The methods that estimate scores, one a file."""
