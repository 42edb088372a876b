"""The device half of icis-deploy: it runs bundles and never imports torch or onnx."""
