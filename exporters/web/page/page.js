// The page of a bundle: classifies an image or what a camera sees, and takes class updates.

const element = (id) => document.getElementById(id);
const [picture, answers, message, historyList] = ['picture', 'answers', 'message', 'history'].map(element);
const UPDATE_START = '{';
let device = null;
let shownImage = null;
let camera = null;
let exported = new Set();

function say(text, kind = '') {
  message.textContent = text;
  message.className = kind;
}

const complain = (error) => {
  say(error.name === 'Error' || error.what === undefined ? `This page failed: ${error.message ?? error}` : error.message, 'bad');
  if (error.what === undefined) console.error(error);
};

function item(text, className = '') {
  const line = document.createElement('li');
  line.textContent = text;
  line.className = className;
  return line;
}

async function showState() {
  const names = device.classes();
  element('state').textContent = `${names.length} classes, version ${device.version}`;
  const lines = (await device.history()).reverse();
  historyList.replaceChildren(...lines.map((line) => {
    const counts = ['added', 'replaced', 'removed'].filter((what) => line[`num_${what}`]).map((what) => `${line[`num_${what}`]} ${what}`);
    const details = [...counts, ...(line.signed_by === null ? [] : [`signed by ${line.signed_by.slice(0, 8)}…`])];
    return item(`${line.time.replace('T', ' ').replace('Z', '')} – ${line.action}, version ${line.version}${details.length ? ` (${details.join(', ')})` : ''}`);
  }));
  if (!lines.length) historyList.replaceChildren(item('Nothing was changed yet.', 'soft'));
  element('rollback').disabled = !lines.some(({ action }) => action === 'apply');
}

async function answer(image) {
  const { classes, version } = await device.predict(image);
  answers.replaceChildren(...classes.map(({ name, probability }) => {
    const line = item('', exported.has(name) ? '' : 'new');
    const [label, share, meter] = ['span', 'span', 'meter'].map((tag) => document.createElement(tag));
    label.textContent = name;
    share.textContent = `${(100 * probability).toFixed(1)} %`;
    meter.value = probability;
    line.append(label, share, meter);
    return line;
  }));
  answers.dataset.version = String(version);
}

async function takeImage(file) {
  stopCamera();
  const view = new Image();
  view.src = URL.createObjectURL(file);
  view.alt = file.name ?? 'the image';
  try {
    await view.decode();
  } catch {
    URL.revokeObjectURL(view.src);
    throw Object.assign(new Error(`The browser cannot show ${file.name}: it is no image that it knows.`), { what: '' });
  }
  picture.replaceChildren(view);
  shownImage = file;
  await answer(file);
}

async function takeUpdate(file) {
  say(`Checking ${file.name}…`);
  const { kind, added, replaced, removed, version, changed } = await device.apply(file);
  const counts = [[added, 'added'], [replaced, 'replaced'], [removed, 'removed']].filter(([names]) => names.length).map(([names, what]) => `${names.length} ${what}`);
  say(!changed ? `Version ${version} is in effect already.` : kind === 'trusted keys' ? `Trusted keys of version ${version} are in effect.` : `Version ${version} is in effect: ${counts.join(', ')}.`, 'good');
  await refresh();
}

async function refresh() {
  await showState();
  if (shownImage !== null) await answer(shownImage);
}

// An update is JSON; no image begins like that.
async function takeFile(file) {
  const start = await file.slice(0, 1).text();
  return start === UPDATE_START || /\.(icis|dsse)$/.test(file.name) ? takeUpdate(file) : takeImage(file);
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  element('camera').textContent = 'Camera';
}

async function startCamera() {
  if (camera !== null) return stopCamera();
  if (navigator.mediaDevices === undefined) throw Object.assign(new Error('This page has no camera: browsers give it to pages of https and of localhost alone.'), { what: '' });
  camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
  const view = Object.assign(document.createElement('video'), { srcObject: camera, muted: true, playsInline: true });
  picture.replaceChildren(view);
  await view.play();
  shownImage = null;
  element('camera').textContent = 'Stop';
  for (const stream = camera; camera === stream; ) {
    await answer(view);
    await new Promise(requestAnimationFrame);
  }
  return undefined;
}

function wire() {
  const onFile = (id, take) => element(id).addEventListener('change', ({ target }) => {
    const [file] = target.files;
    target.value = '';
    if (file) take(file).catch(complain);
  });
  onFile('file', takeImage);
  onFile('update', takeUpdate);
  element('camera').addEventListener('click', () => startCamera().catch((error) => {
    stopCamera();
    complain(error);
  }));
  element('rollback').addEventListener('click', () => device.rollback().then(({ version }) => {
    say(`Version ${version} is in effect again.`, 'good');
    return refresh();
  }).catch(complain));
  addEventListener('dragover', (event) => {
    event.preventDefault();
    element('drop').classList.add('over');
  });
  addEventListener('dragleave', () => element('drop').classList.remove('over'));
  addEventListener('drop', (event) => {
    event.preventDefault();
    element('drop').classList.remove('over');
    const [file] = event.dataTransfer.files;
    if (file) takeFile(file).catch(complain);
  });
  // Another page may have changed the classes while this one was hidden.
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) device.refresh().then((changed) => changed && refresh()).catch(complain);
  });
  for (const id of ['file', 'update', 'camera']) element(id).disabled = false;
}

async function open() {
  const { openBundle } = await import('icis-deploy');
  try {
    await import('onnxruntime-web');
  } catch {
    throw Object.assign(new Error('onnxruntime-web is not next to this page. Export the bundle with `--onnxruntime-web node_modules`, or put ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm into web/ort/.'), { what: '' });
  }
  device = await openBundle(new URL('..', location.href));
  exported = new Set(device.bundle.classNames);
  wire();
  await showState();
}

open().catch((error) => {
  element('state').textContent = 'The bundle could not be opened.';
  complain(error);
});
