#!/usr/bin/env python3
"""Runs knock.py against the vectors of spa/PROTOCOL.md, section 11: vectors.py DIRECTORY

It prints a line for each file: its name, and "ok" or what is wrong. Packets are sealed by knock.py and opened here,
as a server does by section 10.
"""
import pathlib, re, struct, sys
import knock


def read(path):
    """A vector: the values of each name."""
    v = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = re.fullmatch("([^:]*):(?: (.*))?", line).groups("")
            v.setdefault(name, []).append(value)
    return v


def same(what, got, want):
    if got != want:
        raise AssertionError(f"{what}: got {got}, want {want}")


def refused(call, *args):
    try:
        call(*args)
    except (ValueError, struct.error):
        return True
    return False


def text_of(ports):
    protocol, low, high = ports
    return {6: "tcp", 17: "udp"}[protocol] + f"/{low}" + (f"-{high}" if high > low else "")


def check_token(v):
    raw = v["token"][0] if "token" in v else bytes.fromhex(v["token bytes"][0]).decode("latin-1")
    if v["verdict"] == ["token-wrong"]:
        return same("refused", refused(knock.parse_token, raw), True)
    t = knock.parse_token(" \t" + raw + "\r\n")
    got = {name: [value.hex()] if isinstance(value, bytes) else [value] for name, value in t.items()}
    got.update({"verdict": ["token-ok"], "token": v["token"], "knock port": [str(n) for n in t["knock port"]],
                "receipts": [str(t["receipts"]).lower()], "service": [" ".join([n, *of]) for n, of in t["service"]]})
    if not got["service"]:
        del got["service"]
    same("token", got, v)


def keys(v, gate):
    return knock.derive({"gate key": bytes.fromhex(gate),
                         **{n: bytes.fromhex(v[n][0]) for n in ("server id", "client id", "client key")}})


def check_receipt(v):
    k, request, datagram = keys(v, v["gate key"][0]), bytes.fromhex(v["request"][0]), bytes.fromhex(v["receipt"][0])
    if v["verdict"] == ["receipt-wrong"]:
        return same("ignored", refused(knock.open_receipt, k, request, datagram), True)
    r = knock.open_receipt(k, request, datagram)
    services = [" ".join([str(millis), *map(text_of, told), *["more"][:more], *["started"][:r["started"] >> i & 1],
                          *["once"][:r["once"] >> i & 1]])
                for i, (millis, told, more) in enumerate(r["service"])]
    let_in = str(r.get("let in"))
    same("receipt", [r["status"], r["time"], str(r["source"] or "none"), r.get("again"), let_in, services],
         [int(v["status"][0]), int(v["time"][0]), v["source"][0], int(v["again"][0]) if "again" in v else None,
          v.get("let in", ["None"])[0],
          v.get("service", [])])


def open_packet(v):
    """The first seven checks of section 10: the verdict, and the request."""
    packet, now, window = bytes.fromhex(v["packet"][0]), int(v["now"][0]), int(v["window"][0]) * 10**6
    if not 168 <= len(packet) <= 256:
        return "length", None
    of = [k for k in (keys(v, gate) for gate in v["gate key"])
          if struct.pack(">Q", knock.siphash(k["gate tag"], packet[:32])) == packet[32:40]]
    if not of:
        return "gate", None
    k = of[0]
    if int.from_bytes(packet[24:32], "big") ^ knock.siphash(k["gate mask"], packet[:24]) != k["client id"]:
        return "client", None
    if knock.mac(k["request mac"], b"sallyport 1 request", k["server id"], packet[:-32]) != packet[-32:]:
        return "mac", None
    if "revoked" in v:
        return "revoked", None
    if "until" in v and now >= int(v["until"][0]):
        return "retired", None
    try:
        r = parse_request(knock.xchacha20(k["request cipher"], packet[:24], packet[40:-32])[:96])
    except (ValueError, struct.error):
        return "malformed", None
    return ("ok" if abs(r["time"] - now) <= window else "stale"), r


def parse_request(body):
    version, kind, flags, count, request_id, stamp, millis, source = struct.unpack_from(">4B16sqI16s", body)
    at, services, first, let_in = 48, [], None, None
    for _ in range(count):
        n = body[at] if at < len(body) else 0
        size = 3 if n & 0x80 else 1 + n
        knock.rule(0 < n and at + size <= len(body), "cut off")
        name = body[at + 1:at + size].decode("latin-1")
        services.append(f"{ {6: 'tcp', 17: 'udp'}.get(n & 0x7F)}/{int.from_bytes(body[at + 1:at + 3], 'big')}"
                        if n & 0x80 else name)
        knock.service(services[-1])
        at += size
    if flags & 2:
        knock.rule(len(body) >= at + 17 and count < 8, "cut off, or too many services")
        let_in, at = knock.network((knock.from_sixteen(body[at:at + 16]), body[at + 16])), at + 17
    if flags & 1:
        first, = struct.unpack_from(">q", body, at)
        knock.rule(first < stamp, "the first is not before this one")
    knock.rule(version == 1 and kind in (1, 2) and flags < 4 and 1 <= count <= 8, "a bad head")
    knock.rule(len(set(services)) == count and not (kind == 2 and millis), "a service twice, or a close with a time")
    return {"type": {1: "open", 2: "close"}[kind], "request id": request_id, "time": stamp, "for": millis,
            "source": knock.from_sixteen(source), "service": services, "first": first, "let in": let_in}


def check_packet(v):
    verdict, r = open_packet(v)
    same("verdict", [verdict], v["verdict"])
    k = keys(v, v["gate key"][-1])
    for name in set(k) & set(v) - {"server id", "client id"}:
        same(name, k[name].hex(), v[name][0])
    if verdict == "ok":
        want = [v[n][0] for n in ("type", "request id", "time", "for", "source")]
        want += [v["service"], v.get("first", ["None"]), v.get("let in", ["None"])]
        same("request", [r["type"], r["request id"].hex(), str(r["time"]), str(r["for"]), str(r["source"] or "none"),
                         r["service"], [str(r["first"])], [str(r["let in"])]], want)
        encoded = knock.encode({"open": 1, "close": 2}[r["type"]], r["request id"], r["time"], r["for"], r["source"],
                               [knock.service(s) for s in r["service"]], r["first"], r["let in"])
        same("encoding", encoded.hex(), v["plaintext"][0])
    if verdict in ("ok", "malformed", "stale", "revoked", "retired"):
        packet, plain, fresh = (bytes.fromhex(v[n][0]) for n in ("packet", "plaintext", "fresh"))
        body = knock.xchacha20(k["request cipher"], packet[:24], packet[40:-32])
        same("plaintext", body[:len(plain)].hex(), plain.hex())
        same("sealing", knock.seal(k, plain, fresh, body[len(plain):]).hex(), packet.hex())


def main():
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
        v = read(path)
        kind = v["verdict"][0].split("-")[0]
        try:
            {"token": check_token, "receipt": check_receipt}.get(kind, check_packet)(v)
            print(path.name, "ok")
        except Exception as e:  # whatever it is, it is this vector's
            print(path.name, type(e).__name__, e)


if __name__ == "__main__":
    main()
