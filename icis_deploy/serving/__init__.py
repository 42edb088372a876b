"""A bundle behind HTTP: the Open Inference Protocol, images, metrics, and classes that change under load."""
