// Why nothing came, the likeliest reason first.

const window = 30; // seconds that a clock may be off

// offset returns how many seconds the clock is ahead of that of the server of this page, or null.
export async function offset() {
  if (!location.protocol.startsWith('http')) return null;
  try {
    const before = Date.now();
    const answer = await fetch(location.pathname, { method: 'HEAD', cache: 'no-store' });
    const date = Date.parse(answer.headers.get('date'));
    return Number.isNaN(date) ? null : ((before + Date.now()) / 2 - date - 500) / 1000;
  } catch {
    return null;
  }
}

const firefox = () => navigator.userAgent.includes('Firefox');

// reasons returns sentences.
export async function reasons(outcome, gateway) {
  if (outcome === 'unsent') {
    return ['The browser has no way to send datagrams: a proxy, an extension or a setting blocks WebRTC, or this device '
      + 'is offline.'];
  }
  const list = [];
  const ahead = await offset();
  if (!navigator.onLine) list.push('This device is offline.');
  if (ahead !== null && Math.abs(ahead) > window - 5) {
    const by = Math.round(Math.abs(ahead));
    list.push(`The clock of this device is ${by} s ${ahead > 0 ? 'ahead' : 'behind'}: set it to the network's time.`);
  }
  if (!gateway.profile.receipts) list.push('This gateway never answers: the port may be open. Try it.');
  if (firefox()) list.push('The gateway refused: Firefox does not show that. The gateway\'s log does.');
  if (ahead === null) list.push(`The clock of this device is off by more than ${window} s.`);
  if (gateway.profile.source && gateway.profile.source !== 'observed') {
    list.push(`Your address is not ${gateway.profile.source}, which the token states.`);
  }
  list.push(
    'This network blocks UDP: try another, such as mobile data.',
    `The gateway takes no knocks from browsers (browser = true), or is not at ${gateway.hosts}.`,
    'The key was revoked or replaced, or may not be used from this network: ask for a new token.',
  );
  return list;
}
