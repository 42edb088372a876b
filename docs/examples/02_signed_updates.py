"""A publisher signs class updates, and a device takes, refuses and gives them back: the files of a fleet, in Python.

python docs/examples/02_signed_updates.py
"""

# %% [markdown]
# ## A classifier
# Its rows follow from what its classes are, as those of a trained one do, so that rows of new classes can be predicted.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch

import icis_deploy
from icis_deploy.errors import VersionRollbackError

random = np.random.default_rng(0)
NUM_SEEN, NUM_NEW, DESCRIPTOR_DIM, FEATURE_DIM = 60, 4, 12, 32
names = [f"kind {number}" for number in range(NUM_SEEN + NUM_NEW)]
seen_names, new_names = names[:NUM_SEEN], names[NUM_SEEN:]
descriptors = random.normal(size=(len(names), DESCRIPTOR_DIM))
rows = descriptors @ random.normal(size=(DESCRIPTOR_DIM, FEATURE_DIM)) / DESCRIPTOR_DIM**0.5
described = dict(zip(names, descriptors, strict=True))

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(FEATURE_DIM, NUM_SEEN)).eval()
with torch.no_grad():
    model[1].weight.copy_(torch.from_numpy(rows[:NUM_SEEN]))
    model[1].bias.zero_()


def inputs_of(names_shown: list[str], num_each: int = 8) -> tuple[np.ndarray, list[str]]:
    """Return inputs that show classes, `(batch, 1, FEATURE_DIM)` float32, and the class of each."""
    labels = [name for name in names_shown for _ in range(num_each)]
    clean = np.stack([rows[names.index(label)] for label in labels])
    return (clean + random.normal(0, 0.4, clean.shape)).astype(np.float32)[:, None], labels


workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
batch = torch.export.Dim("batch")
example = torch.zeros(2, 1, FEATURE_DIM)
torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: batch},)), folder / "model.pt2")

# %% [markdown]
# ## The publisher: keys, and a bundle that trusts one

# %%
keys = icis_deploy.keygen(folder / "publisher")
opened = icis_deploy.inspect(folder / "model.pt2", classes=seen_names)
shown, classes = inputs_of(seen_names, 6)
known = {name: [array for array, label in zip(shown, classes, strict=True) if label == name] for name in seen_names}
options = icis_deploy.ExportOptions(head="updatable", capacity=16, trust=[keys.public_path], seen_images=known)
icis_deploy.export(opened, out=folder / "bundle", options=options)

# %% [markdown]
# ## The publisher: a signed update

# %%
settings = icis_deploy.InjectionOptions(method="ridge", seen_images=known)
update = icis_deploy.inject(opened, descriptors=described, options=settings)
icis_deploy.save_update(update, folder / "new.icis")
icis_deploy.sign(folder / "new.icis", key=keys.private_path, version=1, complete=True)

# %% [markdown]
# ## The device: take it, and give it back

# %%
inputs, labels = inputs_of(new_names)
with icis_deploy.Device.open(folder / "bundle") as device:

    def share_right() -> float:
        """Return how often the device is right on inputs of the new classes."""
        answers = [answer.class_names[0] for answer in device.predict(inputs, top=1)]
        return float(np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]))

    before = share_right()
    device.apply(folder / "new.icis")
    after = share_right()
    device.rollback()
    given_back = share_right()
    print(f"right on new classes: {before:.2f} before, {after:.2f} with the update, {given_back:.2f} given back")

    # A version that was rolled back stays spent, so that nobody can send the file again. The bundle stays as it was.
    try:
        device.apply(folder / "new.icis")
        refused = None
    except VersionRollbackError as error:
        refused = error
        print(f"refused, exit code {error.exit_code}: {error}")
    actions = [entry.action for entry in device.history()]
    print(actions)
workplace.cleanup()
