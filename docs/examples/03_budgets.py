"""What new classes may cost the known ones: three budgets, each held by pictures of known classes.

python docs/examples/03_budgets.py
"""

# %% [markdown]
# ## A classifier of 80 kinds, and five that it never saw

# %%
import tempfile
from pathlib import Path

from small_world import DESCRIPTORS, NAMES, PREPROCESSING, SEEN, model_file, pictures

import icis_deploy

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)

# %% [markdown]
# ## Pictures of known kinds say what a budget costs
# Not those that the classifier was made from: on these it is right too often, and promises too much.

# %%
known = pictures(SEEN, 5)
tested = pictures(NAMES, 8)
reports = {}
print("budget   known: before   now   lost     new: right")
for points in (1, 5, 20):
    settings = icis_deploy.InjectionOptions(method="ridge", seen_images=known, max_seen_loss=points / 100)
    update = icis_deploy.inject(opened, descriptors=DESCRIPTORS, preprocess=PREPROCESSING, options=settings)
    options = icis_deploy.ExportOptions(head="fused", preprocess=PREPROCESSING)
    icis_deploy.export(opened, updates=[update], out=folder / f"bundle-{points}", options=options)
    report = icis_deploy.evaluate(folder / f"bundle-{points}", images=tested)
    reports[points] = report
    before, now = 100 * report.S_original, 100 * report.S
    print(f"{points:6}   {before:13.1f} {now:5.1f} {before - now:6.1f} {100 * report.U:14.1f}")
workplace.cleanup()
