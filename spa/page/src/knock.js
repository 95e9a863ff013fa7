// A command: packets in the connectivity checks of WebRTC, until one is answered. PROTOCOL.md, section 12.

import { formatAddress, isFour, parseAddress } from './address.js';
import { encodeRequest, random, sealForBrowser } from './protocol.js';

const allowed = 12_000; // ms for a command
const pause = 3_000; // ms before the next packet
const grace = 1_000; // ms that the other addresses get once one has answered
const soon = 5_000; // ms within which a browser that was not refused does not give up

export const canKnock = () => typeof RTCPeerConnection === 'function';

// knock sends a command to every address of a gateway at the same time. It returns 'done', 'refused', 'unanswered', or
// 'unsent' if the browser has no way to send datagrams. signal ends it early.
export async function knock(gateway, command, signal) {
  const enough = new AbortController();
  signal.addEventListener('abort', () => enough.abort(), { once: true });
  const tries = gateway.addresses.map((a) => knockAt(gateway, a, command, enough.signal));
  // A network often lacks one family: once one address has answered, the others get a little longer.
  for (const t of tries) t.then((o) => o === 'done' && setTimeout(() => enough.abort(), grace), () => {});
  const results = await Promise.all(tries);
  const best = ['done', 'refused', 'unanswered', 'unsent'];
  return results.sort((a, b) => best.indexOf(a) - best.indexOf(b))[0];
}

async function knockAt(gateway, address, command, signal) {
  const request = { ...command, id: random(16), source: statedSource(gateway.profile, address) };
  const began = Date.now();
  const open = [];
  const outcomes = new Set();
  const over = new Promise((resolve) => { signal.addEventListener('abort', () => resolve(''), { once: true }); });
  try {
    for (let i = 0; Date.now() - began < allowed && !signal.aborted; i++) {
      const port = gateway.ports[i % gateway.ports.length];
      const a = attempt(gateway.profile, address, port, request);
      open.push(a);
      const left = allowed - (Date.now() - began);
      const outcome = await settled([over, ...open.map((x) => x.outcome)], Math.min(pause, left));
      if (outcome === 'done' || outcome === 'refused') return outcome;
      if (outcome) outcomes.add(outcome);
      if (outcome === 'unsent') break;
    }
  } finally {
    open.forEach((a) => a.close());
  }
  return outcomes.has('unsent') ? 'unsent' : 'unanswered';
}

// settled waits for the first outcome, and at most some time.
async function settled(outcomes, ms) {
  let timer;
  const late = new Promise((resolve) => { timer = setTimeout(resolve, ms, ''); });
  try {
    return await Promise.race([late, ...outcomes]);
  } finally {
    clearTimeout(timer);
  }
}

// statedSource is the address that the profile states, if packets can come from there to the gateway's address.
function statedSource(profile, address) {
  const stated = parseAddress(profile.source);
  return stated && isFour(stated) === isFour(address) ? stated : undefined;
}

// attempt sends one packet, in a connection of its own.
function attempt(profile, address, port, request) {
  const time = BigInt(Date.now()) * 1_000_000n;
  const { ufrag, pwd } = sealForBrowser(encodeRequest({ ...request, time }), profile);
  const pc = new RTCPeerConnection({ iceServers: [] });
  const began = performance.now();
  const outcome = new Promise((resolve) => {
    pc.onconnectionstatechange = pc.oniceconnectionstatechange = async () => {
      if (['connected', 'completed'].includes(pc.iceConnectionState)) return resolve('done');
      if (pc.iceConnectionState !== 'failed' && pc.connectionState !== 'failed') return undefined;
      const early = performance.now() - began < soon;
      if (!(await hasLocal(pc))) return resolve('unsent');
      // Chromium and Safari give up at once when the gateway says so under the right password, and not otherwise.
      return early ? resolve('refused') : undefined;
    };
  });
  const started = start(pc, address, port, ufrag, pwd);
  return { outcome: Promise.race([outcome, started.then(() => outcome, () => 'unsent')]), close: () => pc.close() };
}

async function start(pc, address, port, ufrag, pwd) {
  pc.createDataChannel('knock');
  await pc.setLocalDescription(await pc.createOffer());
  await pc.setRemoteDescription({ type: 'answer', sdp: description(address, port, ufrag, pwd) });
}

// hasLocal reports whether the browser has a UDP address that it sends from.
async function hasLocal(pc) {
  const stats = await pc.getStats();
  return [...stats.values()].some((s) => s.type === 'local-candidate' && s.protocol === 'udp');
}

// description is that of a peer which is the gateway's knock port. Its fingerprint is nobody's: there is no DTLS.
function description(address, port, ufrag, pwd) {
  const host = formatAddress(address);
  return [
    'v=0', 'o=- 1 1 IN IP4 0.0.0.0', 's=-', 't=0 0', 'a=group:BUNDLE 0',
    'm=application 9 UDP/DTLS/SCTP webrtc-datachannel', 'c=IN IP4 0.0.0.0', 'a=mid:0',
    `a=ice-ufrag:${ufrag}`, `a=ice-pwd:${pwd}`,
    `a=fingerprint:sha-256 ${new Array(32).fill('00').join(':')}`, 'a=setup:passive', 'a=sctp-port:5000',
    `a=candidate:1 1 UDP 2130706431 ${host} ${port} typ host`, 'a=end-of-candidates', '',
  ].join('\r\n');
}
