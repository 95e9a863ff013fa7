#!/usr/bin/env python3
"""A client for the Sallyport protocol, written from spa/PROTOCOL.md alone, with nothing but Python 3.9.

    knock.py [--close] [--for MILLISECONDS] [--source ADDRESS|auto|observed] [--timeout SECONDS] TOKENFILE SERVICE...

TOKENFILE holds an enrolment token, - is standard input. A SERVICE is a name or a port: ssh, tcp/22.
Exit status: 0 granted or closed, 1 failed, 2 misuse, 3 refused, 4 no answer.
"""
import argparse, base64, hashlib, hmac, ipaddress, math, random, re, secrets, select, socket, struct, sys, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress

NAME, LABEL, PORT = re.compile("(?!-)[a-z0-9-]{1,32}"), "(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", "([1-9][0-9]{0,4})"

# Section 1: primitives.
def chacha(state, block):
    """The 20 rounds of RFC 8439. A block of the key stream adds its input; HChaCha20 leaves the middle out."""
    x = list(state)
    for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                       (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)) * 10:
        for p, q, r, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = x[p] + x[q] & 0xFFFFFFFF
            v = x[r] ^ x[p]
            x[r] = (v << n | v >> 32 - n) & 0xFFFFFFFF
    return [v + s & 0xFFFFFFFF for v, s in zip(x, state)] if block else x[:4] + x[12:]

def xchacha20(key, nonce, data):
    constants, words = struct.unpack("<4I", b"expand 32-byte k"), lambda b: struct.unpack(f"<{len(b) // 4}I", b)
    subkey = chacha([*constants, *words(key), *words(nonce[:16])], False)
    stream = b"".join(struct.pack("<16I", *chacha([*constants, *subkey, i, 0, *words(nonce[16:])], True))
                      for i in range(len(data) // 64 + 1))
    return bytes(a ^ b for a, b in zip(data, stream))

def siphash(key, message):
    k0, k1 = struct.unpack("<2Q", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    rotate = lambda n, by: (n << by | n >> 64 - by) & 0xFFFFFFFFFFFFFFFF
    def rounds(n):
        for a, b, by, turn in ((0, 1, 13, 32), (2, 3, 16, 0), (0, 3, 21, 0), (2, 1, 17, 32)) * n:
            v[a] = v[a] + v[b] & 0xFFFFFFFFFFFFFFFF
            v[b] = rotate(v[b], by) ^ v[a]
            v[a] = rotate(v[a], turn)
    message += bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for word in struct.unpack(f"<{len(message) // 8}Q", message):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]

mac = lambda key, *parts: hmac.new(key, b"".join(parts), hashlib.sha256).digest()

def derive(t):  # section 2: the keys by their names, and the ids, of what a token says
    hkdf = lambda key, name, n: mac(mac(bytes(32), key), b"sallyport 1 " + name.encode(), b"\x01")[:n]
    names = "request cipher", "request mac", "receipt cipher", "receipt mac", "nonce hedge"
    return {"server id": t["server id"], "client id": int.from_bytes(t["client id"], "big"),
            **{name: hkdf(t["client key"], name, 32) for name in names},
            **{name: hkdf(t["gate key"], name, 16) for name in ("gate mask", "gate tag")}}

# Section 3: the token. A malformed one raises a ValueError, which shows no key.
def rule(holds, broken):
    if not holds: raise ValueError(broken)

def ports(text):  # tcp/22 or udp/60000-60010, as protocol, lowest, highest
    m = re.fullmatch(f"(tcp|udp)/{PORT}(?:-{PORT})?", text)
    rule(m and int(m[2]) <= int(m[3] or m[2]) < 65536 and m[2] != m[3], "bad ports")
    return {"tcp": 6, "udp": 17}[m[1]], int(m[2]), int(m[3] or m[2])

def one_machine(text):
    ip = ipaddress.ip_address(text)
    broken = "%" in text or ip.is_unspecified or ip.is_multicast or getattr(ip, "ipv4_mapped", None)
    rule(not broken, "an address of no machine")
    return ip

def address(text):
    """The address field: a host name or IP address, and a port or None."""
    m = re.fullmatch(rf"(?:\[([^][]*:[^][]*)\]|([^][:]*))(?::{PORT})?|([^][]*:[^][]*:[^][]*)", text)
    rule(m and len(text) <= 250 and int(m[3] or 1) < 65536, "a bad address")
    host, number = m[1] or m[4] or m[2], int(m[3] or 0) or None
    if ":" in host or re.fullmatch("[0-9.]*[0-9]", host):
        return str(one_machine(host)), number
    rule(re.fullmatch(rf"{LABEL}(\.{LABEL})*\.?", host), "a bad host name")
    return host, number

def parse_token(text):
    text = text.strip(" \t\r\n")
    raw = base64.urlsafe_b64decode(text[4:] + "=" * (-len(text) % 4))
    rule("spa1" + base64.urlsafe_b64encode(raw).decode().rstrip("=") == text, "not a token")
    rest, checksum = list(raw[-9::-1]), hashlib.sha256(b"sallyport 1 token" + raw[:-8]).digest()[:8]
    rule(hmac.compare_digest(checksum, raw[-8:]), "a wrong checksum: mistyped or cut off")
    def take(n):
        rule(n <= len(rest), "cut off")
        return bytes(rest.pop() for _ in range(n))
    def count(least, most):
        n = take(1)[0]
        rule(least <= n <= most, "a number out of its bounds")
        return n
    read = lambda: take(count(0, 255)).decode("latin-1")
    t = {name: read() for name in ("name", "client", "address", "source")}
    t["knock port"] = [int.from_bytes(take(2), "big") for _ in range(count(1, 32))]
    t.update({name: take(n) for name, n in (("server id", 16), ("gate key", 32), ("client id", 8), ("client key", 32))})
    t["receipts"] = count(0, 1) == 1
    t["service"] = [(read(), [read() for _ in range(count(1, 64))]) for _ in range(count(0, 128))]
    names = [name for name, _ in t["service"]]
    rule(all(NAME.fullmatch(name) for name in [t["name"], t["client"], *names]), "a bad name")
    rule(not rest and names == sorted(set(names)), "services out of order, or something after them")
    rule(any(t["server id"]) and any(t["client id"]) and all(t["knock port"]), "a number of zeros")
    rule(len(set(t["knock port"])) == len(t["knock port"]), "a knock port twice")
    rule(all(len(set(map(ports, of))) == len(of) for _, of in t["service"]), "ports twice")
    address(t["address"])
    stun = t["source"].startswith("stun:") and address(t["source"][5:])
    rule(stun or t["source"] in ("", "observed") or str(one_machine(t["source"])) == t["source"], "a bad source")
    return t

# Sections 4 to 6: request, packet, receipt. A service is a name or (protocol, port).
def service(text):
    rule(NAME.fullmatch(text) or ports(text)[1] == ports(text)[2], "a range of ports cannot be asked for")
    return text if NAME.fullmatch(text) else ports(text)[:2]

sixteen = lambda ip: bytes(16) if not ip else ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed

def from_sixteen(raw):
    ip = ipaddress.ip_address(raw).ipv4_mapped or ipaddress.ip_address(raw)
    rule(ip.version == 6 or int(ip), "0.0.0.0 is no address")
    return ip if int(ip) else None

NEVER = [*map(ipaddress.ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3",
                                     "::/64", "fe80::/10", "ff00::/8"))]

def network(text):  # that can be let in: section 5
    n = ipaddress.ip_network(text)
    lengths = range(8, 33) if n.version == 4 else (*range(32, 65), 128)
    rule(n.prefixlen in lengths and not any(n.version == x.version and n.overlaps(x) for x in NEVER), "no such network")
    return n

def encode(kind, request_id, stamp, millis, source, asked, first=None, let_in=None):
    flags = (first is not None) + 2 * (let_in is not None)
    head = struct.pack(">4B16sqI", 1, kind, flags, len(asked), request_id, stamp, millis)
    tail = sixteen(let_in.network_address) + bytes([let_in.prefixlen]) if let_in else b""
    parts = [bytes([len(s)]) + s.encode() if type(s) is str else struct.pack(">BH", 0x80 | s[0], s[1]) for s in asked]
    return b"".join([head, sixteen(source), *parts, tail, b"" if first is None else struct.pack(">q", first)])

def seal(k, request, fresh=None, padding=None):
    if fresh is None:
        fresh, padding = secrets.token_bytes(32), secrets.token_bytes(96 + secrets.randbelow(89) - len(request))
    packet = nonce = mac(k["nonce hedge"], fresh, request)[:24]
    packet += struct.pack(">Q", k["client id"] ^ siphash(k["gate mask"], nonce))
    packet += struct.pack(">Q", siphash(k["gate tag"], packet))
    packet += xchacha20(k["request cipher"], nonce, request + padding)
    return packet + mac(k["request mac"], b"sallyport 1 request", k["server id"], packet)

def open_receipt(k, packet, datagram):  # an error if the datagram is not the receipt for the packet
    want = mac(k["receipt mac"], b"sallyport 1 receipt", k["server id"], packet[:24], datagram[:-32])
    rule(len(datagram) == len(packet) and hmac.compare_digest(want, datagram[-32:]), "not the receipt")
    body = xchacha20(k["receipt cipher"], datagram[:24], datagram[24:-32])[:112]
    version, status, count, stamp, source = struct.unpack_from(">3Bq16s", body)
    wide, count = count >> 7, count & 0x7F
    rule(not wide or status == 1 and count < 8, "malformed")
    rule(version == 1 and count in {1: range(1, 9), 2: range(9)}.get(status, range(status > 15)), "malformed")
    r, at = {"status": status, "time": stamp, "source": from_sixteen(source), "service": []}, 27
    if wide:
        r["let in"], at = network((r["source"], body[at])), at + 1
    if status == 28:
        r["again"], = struct.unpack_from(">q", body, at)
    for _ in range(count):
        millis, n = struct.unpack_from(">IB", body, at)
        told = [struct.unpack_from(">BHH", body, at + 5 + 5 * i) for i in range(n & 0x7F)]
        rule(all(p in (6, 17) and 0 < low <= high for p, low, high in told), "malformed ranges")
        r["service"].append((millis, told, n > 0x7F))
        at += 5 + 5 * len(told)
    for name, mark in (("started", b"runs"), ("once", b"once")):  # a program is started; one connection gets in
        label, bits = struct.unpack_from(">4sB", body + bytes(5), at)
        r[name] = bits if status == 1 and label == mark and not bits >> count else 0
        at += 5 * (r[name] > 0)
    return r

# Sections 7 to 9: a command.
def choice(source):  # STUN servers are not asked
    return {"observed": None}.get(source, "auto") if source in ("", "auto", "observed") else one_machine(source)

def ways(host, numbers, source):
    """For each family that there is a way to: where to send in turn, and what to state."""
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        found, stated = {}, source  # the server's addresses, and which address packets to each leave from
        with suppress(OSError):
            for *_, (ip, *_) in socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM):
                with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as s:
                    s.connect((ip, numbers[0]))
                    found[ip] = ipaddress.ip_address(s.getsockname()[0].split("%")[0])
        if found and source == "auto":  # Python knows IANA's registries
            stated = next(iter(found.values()))
            stated = stated if stated.is_global and (version == 4 or stated.packed[0] >> 5 == 1) else None
        to = [ip for ip in found if not stated or not ip.startswith(("64:ff9b::", "64:ff9b:1:"))]  # NAT64
        if to and (not stated or stated.version == version):
            yield family, [(ip, n) for n in numbers for ip in to], stated

def knock(k, c, family, to, stated, until):
    """Sends packets until their receipt comes. Returns it with the times of the first packet and of its arrival."""
    sock, request_id, sent = socket.socket(family, socket.SOCK_DGRAM), secrets.token_bytes(16), []
    with suppress(OSError):  # the address of a NAT in front is not this machine's
        sock.bind((str(stated or ""), 0))
    at = [c.timeout * (i / 16) ** max(1.5, math.log(c.timeout / 0.15, 16)) for i in range(16)]
    moments = [0] + [b + random.uniform(-0.2, 0.2) * (b - a) for a, b in zip(at, at[1:])]
    began, first = time.monotonic(), time.time_ns()
    while (passed := time.monotonic() - began) < c.timeout and time.monotonic() < until[0]:
        if moments and passed >= moments[0]:
            now, moments = time.time_ns(), moments[1:]
            late = now - first > 25 * 10**9  # the server needs to be told when the command began from 30 s on
            request = encode(1 + c.close, request_id, now, c.millis, stated, c.services, first if late else None,
                             c.let_in)
            if len(request) <= 96:  # else there is no room to say when the command began
                sent.append(seal(k, request))
                with suppress(OSError):
                    sock.sendto(sent[-1], to[(len(sent) - 1) % len(to)])
        elif select.select([sock], [], [], min([0.1, *(at - passed for at in moments[:1])]))[0]:
            try:
                datagram = sock.recv(65536)
            except OSError:  # an ICMP error, which anyone can forge
                datagram = time.sleep(0.005) or b""
            for packet in sent:
                with suppress(ValueError, struct.error):
                    return open_receipt(k, packet, datagram), stated, first, time.time_ns()

def report(c, r, stated, first, arrived):  # returns the exit status that a receipt stands for
    status, told = r["status"], r["service"]
    if status > 15:
        print("refused: status", status, f"until {r['again']}" if status == 28 else "")
        return 3
    if (status, len(told)) not in ((1, len(c.asked)), (2, len(c.asked)), (2, 0)) or c.close != (status == 2):
        print("knock.py: the server's receipt does not fit the request", file=sys.stderr)
        return 1
    if r.get("let in") != (None if c.close else c.let_in):
        print("knock.py: the server let in another network than was asked for", file=sys.stderr)
        return 1
    for what, (millis, _, _) in zip(c.asked, told or [(0, 0, 0)] * len(c.asked)):
        off = min(0, r["time"] - first) or max(0, r["time"] - arrived)
        end = time.strftime("until %FT%T%z", time.localtime((r["time"] + millis * 10**6 - off) / 1e9))
        print("closed" if c.close else "granted", what, "for", r.get("let in") or r["source"] or stated, "" if c.close else end)
    return 0

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--close", action="store_true"), p.add_argument("--source"), p.add_argument("--let-in", default="")
    p.add_argument("--for", dest="millis", type=int, default=0), p.add_argument("--timeout", type=float, default=10)
    p.add_argument("token"), p.add_argument("asked", nargs="+", metavar="service")
    c = p.parse_args()
    try:
        c.services, c.let_in = [service(s) for s in c.asked], network(c.let_in) if c.let_in else None
        rule(not c.let_in or len(c.services) < 8, "too many services")
        longest = encode(1, bytes(16), 0, 0, None, c.services, None, c.let_in)
        rule(0 <= c.millis < 2**32 and not (c.millis and c.close) and 0 < c.timeout < 10**6, "bad --for or --timeout")
        rule(len(set(c.services)) == len(c.services) < 9 and len(longest) <= 96,
             "too many services, or one twice")
        choice(c.source or "")
    except ValueError as e:
        p.error(str(e))
    try:
        t = parse_token(open(0 if c.token == "-" else c.token, encoding="latin-1").read())
        (host, number), k, until, best = address(t["address"]), derive(t), [math.inf], 4
        found = list(ways(host, [number] if number else t["knock port"], choice(c.source or t["source"])))
        rule(found, "no way to the server in the family of the source (behind NAT64 it has to be observed)")
    except (ValueError, OSError) as e:
        sys.exit(f"knock.py: {e}")
    with ThreadPoolExecutor() as pool:
        for done in as_completed([pool.submit(knock, k, c, *way, until) for way in found]):
            if done.result():
                until[0] = min(until[0], time.monotonic() + 1)
                best = min(best, report(c, *done.result()))
    if best == 4:
        print("knock.py: no answer" if t["receipts"] else "knock.py: sent; this server answers nobody", file=sys.stderr)
    return best

if __name__ == "__main__":
    sys.exit(main())
