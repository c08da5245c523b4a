"""What is done with a trained model, in training's evaluations and afterwards."""
