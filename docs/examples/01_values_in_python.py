"""A classifier learns new classes, and a device takes them: in Python alone, no file is touched but the model's.

Run it with a classifier of your own, or without one: then a small one is trained on rendered images.

    python docs/examples/01_values_in_python.py
"""

# %% [markdown]
# ## A model and what is known of its classes
# Everything below is a value: names are a list, descriptors a dict, images are arrays. A bundle is a folder, so it goes
# into a temporary one.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch

import icis_deploy

random = np.random.default_rng(0)
NUM_SEEN, NUM_NEW, SIDE = 40, 5, 24
names = [f"kind {number}" for number in range(NUM_SEEN + NUM_NEW)]
seen_names, new_names = names[:NUM_SEEN], names[NUM_SEEN:]
colours = random.uniform(0, 255, size=(len(names), 6))  # of the left and the right half: what a class looks like
descriptors = dict(zip(names, (colours - 128) / 64, strict=True))


def picture(name: str) -> np.ndarray:
    """Return a picture of a class, `(height, width, 3)` uint8: two colours and noise."""
    left, right = colours[names.index(name)].reshape(2, 3)
    image = np.empty((SIDE, SIDE, 3))
    image[:, : SIDE // 2], image[:, SIDE // 2 :] = left, right
    return np.clip(image + random.normal(0, 24, image.shape), 0, 255).astype(np.uint8)


preprocessing = icis_deploy.Preprocessing(resize=None, crop=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)

# %% [markdown]
# ## Train a classifier of the seen classes

# %%
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, kernel_size=(SIDE, SIDE // 2), stride=(1, SIDE // 2)),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(64, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, NUM_SEEN),
)
labels = torch.arange(NUM_SEEN).repeat(25)
pictures = np.stack([picture(seen_names[label]) for label in labels])
inputs = torch.from_numpy(preprocessing.from_pixels(pictures))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
for _ in range(60):
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
batch = torch.export.Dim("batch")
torch.export.save(torch.export.export(model, (inputs[:2],), dynamic_shapes=({0: batch},)), folder / "model.pt2")

# %% [markdown]
# ## Inject classes that it never saw
# Pictures of seen classes, by name of the class, say how far new classes may be favoured.

# %%
opened = icis_deploy.inspect(folder / "model.pt2", classes=seen_names)
known = {name: [picture(name) for _ in range(4)] for name in seen_names}
update = icis_deploy.inject(
    opened,
    descriptors=descriptors,
    preprocess=preprocessing,
    options=icis_deploy.InjectionOptions(method="ridge", seen_images=known),
)
print(f"{len(update.added)} new classes: {', '.join(update.added)}")

# %% [markdown]
# ## Export it, and let a device take the classes
# A device takes pictures as they are: arrays, Pillow images, bytes, tensors, paths, or what yields them.

# %%
options = icis_deploy.ExportOptions(head="updatable", preprocess=preprocessing, seen_images=known)
icis_deploy.export(opened, out=folder / "bundle", options=options)
with icis_deploy.Device.open(folder / "bundle") as device:
    device.apply(update, allow_unsigned=True)
    print(device)
    (prediction,) = device.predict(picture(new_names[0]), top=3)
    print(prediction.to_dict())
    rows = [row for name in new_names for row in device.predict(picture(name), top=1)[0].rows(name)]
    tested = {name: [picture(name) for _ in range(10)] for name in names}
    report = icis_deploy.evaluate(device, images=tested)
print(f"T {report.T:.2f}, U {report.U:.2f}, S {report.S:.2f}, H {report.H:.2f}")

# %% [markdown]
# ## The rows of `pandas.DataFrame(rows)`, without pandas

# %%
for row in rows:
    print(row)

# %% [markdown]
# ## Go on training, from the new rows
# The module with the new rows gives what the device gives; the original stays as it was.

# %%
larger = icis_deploy.add_to_module(model, update, classes=seen_names)
with torch.no_grad():
    logits = larger(torch.from_numpy(preprocessing.from_pixels(picture(new_names[1])[None])))
print(f"the module says {names[int(logits.argmax())]}, of {logits.shape[1]} classes")
workplace.cleanup()
