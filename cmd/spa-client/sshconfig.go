package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/client"
)

// sshPort is ssh's default port.
const sshPort = 22

// sshConfig is a host's block for ssh's configuration.
type sshConfig struct {
	names   string // that ssh uses the block for
	host    string // address of the gateway; empty: the name that was typed
	name    string // for --host, before what ssh makes of each
	each    bool   // add the name that was typed, as that of a gateway
	service string
	port    uint16
	asked   uint16 // given with --port; 0: the service has only one
	program string
	config  string // for --config; empty: the default
	fdpass  bool
	windows bool
}

func (a *app) sshConfigCommand() *cobra.Command {
	k := &knock{app: a}
	var port portFlag
	var fdpass bool
	var fleet string
	cmd := &cobra.Command{
		Use:   "ssh-config [SERVICE]",
		Short: "Print a block for ssh's configuration",
		Long: `Ssh-config prints a block for ~/.ssh/config. With it ssh, and scp, rsync, git and all
other programs that run ssh, open the service before they connect: just type "ssh gw". The
host's key stays known under the gateway's own name or address.

With --fleet the block is for all gateways of a fleet, also for those that are added later:
for every name in the fleet's domain, so "ssh web7.example.net" knocks on web7. A machine in
that domain that is not a gateway needs a block with "ProxyCommand none" above this one.
A fleet without a domain gets a block for the gateways that its profile lists.

The default service is ssh. With --fdpass, ssh gets the connection itself and spa-client
exits; Windows does not support it.`,
		Example: `  spa-client ssh-config --host gw >> ~/.ssh/config
  ssh gw
  spa-client ssh-config --fleet prod >> ~/.ssh/config
  ssh web7.example.net`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.sshConfig(cmd, fleet, args, uint16(port))
			if err != nil {
				return err
			}
			c.fdpass = fdpass
			return c.print(cmd.OutOrStdout())
		},
		ValidArgsFunction: k.completeService,
	}
	k.app.hostFlag(cmd, &k.host)
	cmd.Flags().StringVar(&fleet, "fleet", "", "`NAME` of a fleet: a block for all its gateways")
	cmd.RegisterFlagCompletionFunc("fleet", a.completeFleet)
	cmd.MarkFlagsMutuallyExclusive("host", "fleet")
	cmd.Flags().Var(&port, "port", "TCP `PORT` of a service that has several")
	cmd.Flags().BoolVar(&fdpass, "fdpass", false, "let ssh take over the connection (ProxyUseFdpass)")
	return cmd
}

// sshConfig collects the contents of the block.
func (k *knock) sshConfig(cmd *cobra.Command, fleet string, args []string, port uint16) (*sshConfig, error) {
	c, p, err := k.sshHosts(fleet)
	if err != nil {
		return nil, err
	}
	c.asked, c.windows = port, runtime.GOOS == "windows"
	if c.service, c.port, err = sshService(p, args, port); err != nil {
		return nil, err
	}
	if c.program, err = program(); err != nil {
		return nil, err
	}
	if cmd.Flag("config").Changed {
		if c.config, err = filepath.Abs(k.app.config); err != nil {
			return nil, fmt.Errorf("the directory of --config: %w", err)
		}
	}
	if err := onOneLine(c.program, c.config); err != nil {
		return nil, err
	}
	return c, nil
}

// sshHosts returns a block with the names that it is for, and the profile.
func (k *knock) sshHosts(fleet string) (*sshConfig, *keys.Profile, error) {
	if fleet != "" {
		return k.app.sshFleet(fleet)
	}
	p, err := k.app.outline(k.host)
	if s, unread := k.app.stored(strings.TrimSuffix(k.host, "/")); unread == nil && errors.Is(err, errFleet) {
		return nil, nil, cli.Misuse(err, fmt.Sprintf("for all of them: spa-client ssh-config --fleet %s; for one: --host "+
			"%[1]s/GATEWAY", s.Name))
	}
	if err != nil {
		return nil, nil, err
	}
	host, _, err := service.SplitAddress(p.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("the address of host %s: %w", p.Name, err)
	}
	_, gateway, _ := keys.SplitHost(p.Name)
	return &sshConfig{names: cmp.Or(gateway, p.Name), host: host, name: p.Name}, p, nil
}

// sshFleet returns a block for the gateways of a fleet.
func (a *app) sshFleet(name string) (*sshConfig, *keys.Profile, error) {
	if _, _, ok := keys.SplitHost(name); ok {
		return nil, nil, cli.Misuse(fmt.Errorf("%q is not a fleet", name), "for one gateway: --host "+name)
	}
	s, err := a.stored(name)
	if err != nil {
		return nil, nil, err
	}
	c := &sshConfig{names: whereis(&s.Profile), name: s.Name, each: true}
	switch {
	case !s.IsFleet():
		return nil, nil, cli.Misuse(fmt.Errorf("%s is one host, not a fleet", s.Name), "--host "+s.Name)
	case s.Address == "" && len(s.Gateways) == 0:
		return nil, nil, cli.Fail(fmt.Errorf("the fleet %s has no domain and lists no gateways", s.Name),
			"import a newer token")
	case s.Address == "":
		c.names = strings.Join(gatewayNames(&s.Profile), " ")
	}
	return c, &s.Profile, nil
}

// onOneLine refuses paths that would break the line in ssh's configuration.
func onOneLine(paths ...string) error {
	for _, path := range paths {
		if strings.ContainsAny(path, "\r\n") {
			return errors.New("ssh's configuration cannot contain a path with a line break")
		}
	}
	return nil
}

// sshService returns the service for ssh, and its port.
func sshService(p *keys.Profile, args []string, port uint16) (string, uint16, error) {
	name := "ssh"
	if len(args) == 1 {
		name = args[0]
	}
	service, err := service.ParseService(name)
	if err != nil {
		return "", 0, cli.Misuse(fmt.Errorf("%q is not a service: %w", name, err), "")
	}
	known := (&client.Plan{Profile: p}).Ports(service)
	if len(known) == 0 {
		return "", 0, cli.Misuse(fmt.Errorf("the profile of %s has no service %s", p.Name, name),
			"choose ssh's service: "+whichService(p))
	}
	port, err = client.OnlyPort(service, known, port)
	if none := new(client.PortError); errors.As(err, &none) && !none.HasTCP() {
		return "", 0, cli.Misuse(err, "ssh needs a service with a TCP port: "+whichService(p))
	}
	if err != nil {
		return "", 0, cli.Misuse(err, "choose ssh's port: --port PORT")
	}
	return name, port, nil
}

// whichService returns the command line that names another service.
func whichService(p *keys.Profile) string {
	names := serviceNames(p)
	if len(names) == 0 {
		names = []string{"tcp/22"} // the token names none: the client may open ports by number
	}
	flag := " --host "
	if p.IsFleet() {
		flag = " --fleet "
	}
	return "spa-client ssh-config " + strings.Join(names, "|") + flag + p.Name
}

// program returns how ssh finds this program: by its name if that is in PATH, else by its path.
func program() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program's own path: %w", err)
	}
	name := strings.TrimSuffix(filepath.Base(self), ".exe")
	if found, err := exec.LookPath(name); err == nil && sameFile(found, self) {
		return name, nil
	}
	return self, nil
}

func sameFile(a, b string) bool {
	first, err1 := os.Stat(a)
	second, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(first, second)
}

// print writes the block after an empty line: the file that it is appended to may lack a final newline.
func (c *sshConfig) print(w io.Writer) error {
	lines := []string{"", "Host " + c.names}
	if c.host != "" {
		lines = append(lines, "\tHostName "+c.host)
	}
	alias := c.host // what ssh would look up without the block
	if c.port != sshPort {
		lines = append(lines, "\tPort "+strconv.Itoa(int(c.port)))
		alias = "[" + c.host + "]:" + strconv.Itoa(int(c.port))
	}
	if c.host != "" {
		lines = append(lines, "\tHostKeyAlias "+alias)
	}
	lines = append(lines, "\tProxyCommand "+c.command())
	if c.fdpass {
		lines = append(lines, "\tProxyUseFdpass yes")
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// command returns the ProxyCommand, which ssh expands and then a shell parses.
func (c *sshConfig) command() string {
	words := []string{c.program}
	if c.config != "" {
		words = append(words, "--config", c.config)
	}
	words = append(words, "connect", c.service, "--host", c.name)
	target := len(words) - 1
	if c.asked != 0 {
		words = append(words, "--port", strconv.Itoa(int(c.asked)))
	}
	if c.fdpass {
		words = append(words, "--fdpass")
	}
	for i, word := range words {
		words[i] = strings.ReplaceAll(c.quote(word), "%", "%%")
	}
	if c.each { // %n and not %h, which HostName changes; quoted, because ssh of before 2023 hands over any name
		words[target] = c.quoted(c.name + "/%n")
	}
	return strings.Join(words, " ")
}

// quote makes a word one word for the shell: cmd.exe on Windows, sh elsewhere.
func (c *sshConfig) quote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:%"
	if strings.Trim(word, plain) == "" {
		return word
	}
	return c.quoted(word)
}

// quoted is quote for any word.
func (c *sshConfig) quoted(word string) string {
	if c.windows {
		return `"` + word + `"`
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
