"""A device learns a class from its own camera, answers with it, and gives it back: no network, no workbench, no torch.

python docs/examples/06_a_device_that_teaches.py
"""

# %% [markdown]
# ## The workbench exports once
# Pictures of known kinds go into the bundle as features: on the device they hold the budget and guard the answers.

# %%
import tempfile
from pathlib import Path

from small_world import NEW, PREPROCESSING, SEEN, model_file, picture, pictures

import icis_deploy

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)
options = icis_deploy.ExportOptions(
    head="updatable", capacity=16, preprocess=PREPROCESSING, seen_images=pictures(SEEN, 5)
)
icis_deploy.export(opened, out=folder / "bundle", options=options)

# %% [markdown]
# ## The device sees something new

# %%
name = NEW[0]
with icis_deploy.Device.open(folder / "bundle") as device:

    def share_right(num_pictures: int = 20) -> float:
        """Return how often the device says the new name of what it shows."""
        answers = device.predict([picture(name) for _ in range(num_pictures)], top=1)
        return sum(answer.class_names[0] == name for answer in answers) / num_pictures

    before = share_right()
    entry = device.teach(name, images=[picture(name) for _ in range(5)])
    taught = share_right()
    print(f"{name}: right in {before:.0%} before, in {taught:.0%} after five pictures")
    print(f"answers on known kinds that changed: {entry.changed_answers:.1%}; pictures kept: none, only their hashes:")
    print(f"    {entry.photos_sha256[0][:16]}… and {len(entry.photos_sha256) - 1} more")
    device.rollback()
    given_back = share_right()
    actions = [f"{each.action} {each.class_name or ''}".strip() for each in device.history()]
    print(f"given back: right in {given_back:.0%}; history: {', '.join(actions)}")
workplace.cleanup()
