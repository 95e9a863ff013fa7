// Keeps the page for use without a network. A newer page on the server is shown the next time.

const name = 'sallyport';
const files = ['./', 'manifest.webmanifest', 'icon.svg'].map((f) => new URL(f, self.location).href);

// refresh keeps what the server has now. A redirect leads to something else, such as a login.
async function refresh(url) {
  const answer = await fetch(url, { cache: 'no-cache' });
  if (!answer.ok || answer.redirected) throw new Error(`${url}: ${answer.status}`);
  const shown = answer.clone();
  await (await caches.open(name)).put(url, answer);
  return shown;
}

self.addEventListener('install', (event) => {
  event.waitUntil(Promise.all(files.map(refresh)).then(() => self.skipWaiting()));
});

self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const at = new URL(request.url);
  const asked = at.origin + at.pathname.replace(/\/index\.html$/, '/'); // without the fragment, which may be a token
  if (request.method !== 'GET' || !files.includes(asked)) return;
  const fresh = refresh(asked);
  event.waitUntil(fresh.catch(() => {}));
  event.respondWith(caches.match(asked).then((kept) => kept ?? fresh.catch(() => fetch(request))));
});
