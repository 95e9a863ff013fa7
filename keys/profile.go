package keys

// A Profile is what a client knows about one host: the contents of hosts/NAME.toml, and
// of an enrolment token.
type Profile struct {
	Name       string              // what the client calls the host
	Address    string              // HOST, IP, HOST:PORT, IPv4:PORT or [IPv6]:PORT
	KnockPorts []uint16            // UDP ports that carry a knock
	ServerID   ServerID            // the gateway
	Gate       GateKey             // shared by the gateway's clients
	Client     string              // what the gateway calls the client
	ID         ID                  // names Key on the wire
	Key        Key                 // shared with the gateway
	Services   map[string][]string // ports of each service as text: "tcp/22", "tcp/60000-60010"
	Receipts   bool                // the gateway answers
	Source     string              // "" (auto), "observed", an address, or "stun:HOST"
}
