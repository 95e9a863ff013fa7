// SipHash-2-4 (Aumasson, Bernstein, 2012).

const mask = 0xffffffffffffffffn;
const rotate = (x, n) => ((x << n) | (x >> (64n - n))) & mask;

function little(bytes) {
  let n = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) n = (n << 8n) | BigInt(bytes[i]);
  return n;
}

// siphash returns a number of 64 bits.
export function siphash(key, message) {
  const k0 = little(key.subarray(0, 8));
  const k1 = little(key.subarray(8, 16));
  let a = k0 ^ 0x736f6d6570736575n;
  let b = k1 ^ 0x646f72616e646f6dn;
  let c = k0 ^ 0x6c7967656e657261n;
  let d = k1 ^ 0x7465646279746573n;
  const round = () => {
    a = (a + b) & mask; b = rotate(b, 13n) ^ a; a = rotate(a, 32n);
    c = (c + d) & mask; d = rotate(d, 16n) ^ c;
    a = (a + d) & mask; d = rotate(d, 21n) ^ a;
    c = (c + b) & mask; b = rotate(b, 17n) ^ c; c = rotate(c, 32n);
  };
  const take = (word) => {
    d ^= word;
    round();
    round();
    a ^= word;
  };
  const whole = message.length - (message.length % 8);
  for (let i = 0; i < whole; i += 8) take(little(message.subarray(i, i + 8)));
  take(little(message.subarray(whole)) | (BigInt(message.length & 0xff) << 56n));
  c ^= 0xffn;
  for (let i = 0; i < 4; i++) round();
  return a ^ b ^ c ^ d;
}
