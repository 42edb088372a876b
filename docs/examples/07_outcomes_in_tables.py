"""Evaluate pictures batch by batch, as a stream or a cluster would, and ask with pandas what one figure does not say.

python docs/examples/07_outcomes_in_tables.py
"""

# %% [markdown]
# ## A bundle with new kinds

# %%
import tempfile
from pathlib import Path

import pandas as pd
from small_world import DESCRIPTORS, NAMES, NEW, PREPROCESSING, SEEN, model_file, picture, pictures

import icis_deploy

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)
settings = icis_deploy.InjectionOptions(method="ridge", seen_images=pictures(SEEN, 5))
update = icis_deploy.inject(opened, descriptors=DESCRIPTORS, preprocess=PREPROCESSING, options=settings)
options = icis_deploy.ExportOptions(head="fused", preprocess=PREPROCESSING)
icis_deploy.export(opened, updates=[update], out=folder / "bundle", options=options)

# %% [markdown]
# ## One row of outcomes for each picture
# Tables may come in any order, from any number of processes; here every kind is a batch of its own.

# %%
with icis_deploy.Device.open(folder / "bundle") as device:
    class_names = device.classes()
    tables = []
    for name in NAMES:
        shown = [picture(name) for _ in range(8)]
        batch = {"key": [f"{name} {number}" for number in range(8)], "class": [name] * 8, "image": shown}
        tables.append(pd.DataFrame(icis_deploy.outcomes_of(device, batch)))
    report = icis_deploy.accuracy_of_outcomes(device, tables)
print(f"U {report.U:.3f}, S {report.S:.3f}, H {report.H:.3f}")

# %% [markdown]
# ## What the figures do not say: who takes answers from whom

# %%
outcomes = pd.concat(tables, ignore_index=True)
outcomes["shown"] = [class_names[label] for label in outcomes["label"]]
outcomes["said"] = [class_names[answer] for answer in outcomes["answer"]]
wrong = outcomes[outcomes["shown"] != outcomes["said"]]
stolen = wrong[wrong["said"].isin(NEW) & ~wrong["shown"].isin(NEW)]
print(f"{len(wrong)} of {len(outcomes)} answers are wrong; new kinds take {len(stolen)} of known ones:")
print(stolen.groupby(["shown", "said"]).size().sort_values(ascending=False).head(3).to_string())
workplace.cleanup()
