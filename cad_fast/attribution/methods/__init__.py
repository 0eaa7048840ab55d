"""The methods that estimate scores, one a file: an ``Estimator`` each, with its options as fields."""
