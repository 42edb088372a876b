"""What descriptions are made of: numbers of an expert, words for how a class looks, and both in blocks.

python docs/examples/04_descriptions_and_tags.py
"""

# %% [markdown]
# ## Words that say how a kind looks
# A language model or a person writes them; here they follow from the colours. Words of one class
# alone say nothing.

# %%
import tempfile
from pathlib import Path

from small_world import COLOURS, DESCRIPTORS, NAMES, PREPROCESSING, SEEN, model_file, pictures

import icis_deploy


def words(name: str) -> list[str]:
    """Return what a person would say of a kind: of each half, how much of each colour it has."""
    parts = [f"{side} {colour}" for side in ("left", "right") for colour in ("red", "green", "blue")]
    levels = ("no", "some", "much")
    values = COLOURS[NAMES.index(name)]
    return [f"{levels[int((value - 40) // 58.4)]} {part}" for part, value in zip(parts, values, strict=True)]


tags = {name: words(name) for name in NAMES}
print(f"{NAMES[-1]}: {', '.join(tags[NAMES[-1]])}")

# %% [markdown]
# ## Three descriptions of the same kinds

# %%
names, values = tuple(DESCRIPTORS), list(DESCRIPTORS.values())
numbers = icis_deploy.Descriptors(class_names=names, values=values)
described = {
    "words": icis_deploy.describe(NAMES, tags=tags),
    "numbers": icis_deploy.describe(NAMES, attributes=numbers),
    "both": icis_deploy.describe(NAMES, tags=tags, attributes=numbers),
}

# %% [markdown]
# ## What each is worth, measured

# %%
workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)
known, tested = pictures(SEEN, 5), pictures(NAMES, 8)
reports = {}
for source, descriptors in described.items():
    settings = icis_deploy.InjectionOptions(method="ridge", seen_images=known)
    update = icis_deploy.inject(opened, descriptors=descriptors, preprocess=PREPROCESSING, options=settings)
    options = icis_deploy.ExportOptions(head="fused", preprocess=PREPROCESSING)
    icis_deploy.export(opened, updates=[update], out=folder / source, options=options)
    reports[source] = report = icis_deploy.evaluate(folder / source, images=tested)
    blocks = ", ".join(f"{block.name} ({block.width} numbers)" for block in descriptors.blocks)
    print(f"{source:8} {blocks:45} new classes right: {100 * report.U:.0f} %, among themselves {100 * report.T:.0f} %")
workplace.cleanup()
