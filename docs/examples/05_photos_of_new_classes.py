"""A few photos of new classes: what one, two and five of each add to their descriptions, and what they do alone.

python docs/examples/05_photos_of_new_classes.py
"""

# %%
import tempfile
from pathlib import Path

from small_world import DESCRIPTORS, NAMES, NEW, PREPROCESSING, SEEN, model_file, pictures

import icis_deploy

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)
known, tested = pictures(SEEN, 5), pictures(NAMES, 8)
taken = pictures(NEW, 5)

# %% [markdown]
# ## The same budget, with more and more photos
# A description becomes the expectation from which photos move a row; without one, photos alone make it.

# %%
reports = {}
for num_photos, is_described in ((0, True), (1, True), (5, True), (1, False), (5, False)):
    photos = {name: taken[name][:num_photos] for name in NEW} if num_photos else None
    update = icis_deploy.inject(
        opened,
        descriptors=DESCRIPTORS if is_described else None,
        preprocess=PREPROCESSING,
        options=icis_deploy.InjectionOptions(
            method="ridge" if is_described else "auto", seen_images=known, photos=photos
        ),
    )
    name = f"{num_photos} photos {'and a description' if is_described else 'alone'}"
    options = icis_deploy.ExportOptions(head="fused", preprocess=PREPROCESSING)
    icis_deploy.export(opened, updates=[update], out=folder / name, options=options)
    reports[num_photos, is_described] = report = icis_deploy.evaluate(folder / name, images=tested)
    lost = 100 * (report.S_original - report.S)
    print(f"{name:29} new classes right: {100 * report.U:3.0f} %, known ones lose {lost:.1f} points")
workplace.cleanup()
