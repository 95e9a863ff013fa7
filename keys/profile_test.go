package keys

func testProfile() *Profile {
	return &Profile{
		Name: "gw", Address: "gw.example.net", KnockPorts: []uint16{62201, 443}, ServerID: NewServerID(), Gate: NewGateKey(),
		Client: "alice", ID: NewID(), Key: NewKey(),
		Services: map[string][]string{"ssh": {"tcp/22"}, "mosh": {"udp/60000-60010", "tcp/22"}},
		Receipts: true, Source: "observed",
	}
}
