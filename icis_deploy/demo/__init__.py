"""The embedded demo: a small world of drawn things, a classifier trained on most of it, and classes it never saw.

Nothing is downloaded and nothing is read: `world` chooses the classes and describes them, `shapes` and `rendering`
draw them, `image_files` writes them, `network` learns the seen ones, `image_sheet` shows what a model says of the
unseen ones, and `pipeline` does it all.
"""
