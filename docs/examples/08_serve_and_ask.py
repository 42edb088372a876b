"""A server answers over HTTP while its classes change: the file is put into its inbox, and no request fails.

python docs/examples/08_serve_and_ask.py        # needs the extra `serve`
"""

# %% [markdown]
# ## A bundle that trusts a publisher, and a signed update

# %%
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from small_world import DESCRIPTORS, NEW, PREPROCESSING, SEEN, model_file, picture, pictures

import icis_deploy

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
keys = icis_deploy.keygen(folder / "publisher")
opened = icis_deploy.inspect(model_file(folder), classes=SEEN)
known = pictures(SEEN, 5)
options = icis_deploy.ExportOptions(
    head="updatable", capacity=16, preprocess=PREPROCESSING, seen_images=known, trust=[keys.public_path]
)
icis_deploy.export(opened, out=folder / "bundle", options=options)
settings = icis_deploy.InjectionOptions(method="ridge", seen_images=known)
update = icis_deploy.inject(opened, descriptors=DESCRIPTORS, preprocess=PREPROCESSING, options=settings)
icis_deploy.save_update(update, folder / "new.icis")
icis_deploy.sign(folder / "new.icis", key=keys.private_path, version=1)

# %% [markdown]
# ## The server, a process of its own
# Its log is JSON; one line says on which port it listens, and one that it is ready.

# %%
inbox = folder / "inbox"
inbox.mkdir()
command = [sys.executable, "-m", "icis_deploy.cli.main", "serve", str(folder / "bundle"), "--port", "0"]
server = subprocess.Popen([*command, "--inbox", str(inbox)], stderr=subprocess.PIPE, text=True)
port = 0
for line in server.stderr:
    entry = json.loads(line)
    port = entry.get("port", port)
    if entry.get("event") == "ready":
        break


def ask(name: str) -> dict:
    """Send a picture of a kind and return the answer."""
    body = io.BytesIO()
    Image.fromarray(picture(name)).save(body, "PNG")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict?top=1", body.getvalue(), {"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


# %% [markdown]
# ## Ask; put the update into the inbox; ask again

# %%
try:
    before = ask(NEW[0])
    print(f"before: {before}")
    shutil.copy(folder / "new.icis", inbox / "new.part")
    (inbox / "new.part").rename(inbox / "new.icis")  # whole or not at all
    after = before
    for _ in range(600):
        after = ask(NEW[0])
        if after != before and NEW[0] in json.dumps(after):
            break
        time.sleep(0.1)
    print(f"after:  {after}")
finally:
    server.terminate()
    exit_code = server.wait(60)
    server.stderr.close()
print(f"the server ended with exit code {exit_code}")
workplace.cleanup()
