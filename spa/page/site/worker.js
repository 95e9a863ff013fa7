// Keeps the page for use without a network. A newer page on the server is shown the next time.

const name = 'sallyport';
const files = ['./', 'manifest.webmanifest', 'icon.svg'];

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open(name).then((c) => c.addAll(files)).then(() => self.skipWaiting()));
});

self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

async function refresh(request) {
  const answer = await fetch(request, { cache: 'no-cache' });
  if (answer.ok) await (await caches.open(name)).put(request, answer.clone());
  return answer;
}

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const at = new URL(request.url);
  const wanted = files.some((f) => new URL(f, self.location).href === at.origin + at.pathname);
  if (request.method !== 'GET' || !wanted) return;
  const asked = at.origin + at.pathname; // without the fragment, which may be a token
  const fresh = refresh(asked);
  event.waitUntil(fresh.catch(() => {}));
  event.respondWith(caches.match(asked).then((kept) => kept ?? fresh));
});
