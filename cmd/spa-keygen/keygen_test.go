package main

import (
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"spa-keygen": func() { os.Exit(cli.Main("spa-keygen", newRoot())) }})
}

// TestScripts runs the commands as an administrator does. Each script starts with a gateway in ./etc.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: gateway,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"token": checkToken, "words": checkWords,
			"gates": checkGates, "exitcode": checkExit},
	})
}

// gateway writes the files of spa-server init except the journal.
func gateway(env *testscript.Env) error {
	dir := env.WorkDir + "/etc"
	if err := os.MkdirAll(dir+"/clients", 0o750); err != nil {
		return err
	}
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID = "gw", "192.0.2.1", keys.NewServerID()
	for _, text := range []string{"tcp/22", "tcp/80"} {
		ports, err := service.ParsePorts(text)
		if err != nil {
			return err
		}
		name := map[uint16]string{22: "ssh", 80: "web"}[ports.Low]
		c.Services = append(c.Services, config.NewService(name, ports))
	}
	if err := keys.WriteGate(dir+"/"+config.GateFile, keys.NewGateKey()); err != nil {
		return err
	}
	return config.Create(dir, c)
}

// checkToken reads the token in a file and compares what it says: token FILE CLIENT ADDRESS SERVICES...
func checkToken(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: [!] token FILE CLIENT ADDRESS SERVICE...")
	}
	p, err := keys.ParseToken(ts.ReadFile(args[0]))
	ts.Check(err)
	if p.Client != args[1] || p.Address != args[2] || p.Name != "gw" || !p.Receipts || len(p.Services) != len(args)-3 {
		ts.Fatalf("the token says %s %s %s %v %v", p.Name, p.Client, p.Address, p.Receipts, p.Services)
	}
	for _, name := range args[3:] {
		if len(p.Services[name]) == 0 {
			ts.Fatalf("the token has no ports of %s: %v", name, p.Services)
		}
	}
	registry, problems := keys.LoadRegistry(ts.MkAbs("etc/clients"))
	if len(problems) > 0 {
		ts.Fatalf("%v", problems)
	}
	credential, ok := registry.Lookup(p.ID)
	if neg {
		if ok {
			ts.Fatalf("the server knows the token's key")
		}
		return
	}
	if !ok || !credential.Key.Equal(p.Key) || credential.Client.Name != p.Client {
		ts.Fatalf("the server does not know the token's key")
	}
}

// checkGates compares which gate key each of two tokens holds: gates FILE FILE WHICH WHICH
func checkGates(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: gates FILE FILE current|previous|none current|previous|none")
	}
	gates, err := keys.ReadGate(ts.MkAbs("etc/" + config.GateFile))
	ts.Check(err)
	for i, file := range args[:2] {
		p, err := keys.ParseToken(ts.ReadFile(file))
		ts.Check(err)
		is := "none"
		switch {
		case p.Gate.Equal(gates.Current):
			is = "current"
		case p.Gate.Equal(gates.Previous):
			is = "previous"
		}
		if is != args[2+i] {
			ts.Fatalf("the gate key of %s is %s, want %s", file, is, args[2+i])
		}
	}
}

// checkExit is "exitcode N COMMAND...": it runs a command and checks its exit code.
func checkExit(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = strconv.Itoa(exit.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit %s (%v), want %s", code, err, args[0])
	}
}
