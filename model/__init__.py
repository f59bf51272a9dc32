"""How a data set is used: stream, MAE, pre-training, export, reconstruction."""
