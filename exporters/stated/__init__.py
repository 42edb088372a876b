"""What models say of themselves: the names of their classes, and how their images are prepared.

transformers, timm, torchvision and Ultralytics each have a form for it. All become values of icis-deploy, or an
obstacle that names what cannot be taken over.
"""
