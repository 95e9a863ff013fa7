package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys"
	"sallyport/keys/service"
)

// importing is an import of a token.
type importing struct {
	app     *app
	name    string // name for the host here; empty: the gateway's own
	replace bool
	words   bool
}

func (a *app) importCommand() *cobra.Command {
	i := importing{app: a}
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Add a host from an enrolment token, or take its new key",
		Long: `Import reads the token that spa-keygen made for this client and adds a host from it.
It reads the token from a file or from standard input. On a terminal, without a file, paste
it: it is not shown. zbarimg (Debian: zbar-tools) reads the token from a picture of its QR
code. A token cannot be an argument: every user of this machine can read those.

With --words it reads the words of a recovery page (spa-keygen new --recovery): on a
terminal it prompts for them line by line and checks each line. From a file or a pipe it
reads the whole page, or its numbered lines.

The token of a fleet adds all its gateways at once, as hosts FLEET/GATEWAY.

A token for a new key (spa-keygen rotate) of the same client and gateway, or fleet, updates
the existing host: its name, address, source and services stay, and a locked host stays
locked with the same passphrase. A fleet's list of gateways is that of the token. Any other
host of that name is overwritten only with --replace.`,
		Example: `  spa-client import alice.token
  zbarimg --raw picture.png | spa-client import -
  ssh admin@gw cat alice.token | spa-client import --name work
  spa-client import --words`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("name") {
				if err := service.ValidName(i.name); err != nil {
					return cli.Misuse(err, "choose another --name")
				}
			}
			file := "-"
			if len(args) == 1 {
				file = args[0]
			}
			return i.run(cmd, file)
		},
	}
	cmd.Flags().StringVar(&i.name, "name", "", "`NAME` for the host here (default: the gateway's own)")
	cmd.Flags().BoolVar(&i.words, "words", false, "read the words of a recovery page; a terminal shows "+
		"them as they are typed")
	cmd.Flags().BoolVar(&i.replace, "replace", false, "overwrite any host of that name with what the token says")
	return cmd
}

func (i *importing) run(cmd *cobra.Command, file string) error {
	read := readToken
	if i.words {
		read = readWords
	}
	p, err := read(cmd, file)
	if err != nil {
		return err
	}
	dir, err := i.app.hostsDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the directory of hosts: %w", err)
	}
	if _, err := keys.Sweep(dir, ""); err != nil { // for all hosts: a leftover's host may not have a file yet
		return err
	}
	there, err := i.there(p)
	if err != nil {
		return err
	}
	switch {
	case there == nil:
		err = i.add(cmd, dir, p)
	case i.replace || !sameClient(&there.Profile, p):
		err = i.over(cmd, dir, there, p)
	default:
		err = i.renew(cmd, there, p)
	}
	if err != nil {
		return err
	}
	if file != "-" {
		cli.Note(cmd, "%s still contains the key: delete it", file)
	}
	return nil
}

// sameClient reports whether two profiles are for the same client of the same gateway, with any key.
// Two fleets are the same if their ids are.
func sameClient(a, b *keys.Profile) bool {
	return a.ServerID == b.ServerID && a.Fleet == b.Fleet && a.Client == b.Client
}

// there returns the host that the token updates, or nil: the host of its name, or else the host of the same client,
// unless a name was given or the host is to be replaced.
func (i *importing) there(p *keys.Profile) (*keys.StoredProfile, error) {
	if i.name != "" {
		p.Name = i.name
	}
	path, err := i.app.profilePath(p.Name)
	if err != nil {
		return nil, err
	}
	s, err := keys.ReadStored(path)
	switch {
	case err == nil && (i.name != "" || sameClient(&s.Profile, p)):
		return s, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		if i.replace {
			return nil, nil // an unreadable file is overwritten
		}
		return nil, cli.Fail(err, "correct the file, overwrite it with --replace, or add the host under "+
			"another name with --name")
	case i.name != "" || i.replace:
		return s, nil
	}
	under, err := i.elsewhere(p)
	if under != nil || err != nil {
		return under, err
	}
	return s, nil
}

// elsewhere returns the host of the same client under another name, which the user has chosen.
func (i *importing) elsewhere(p *keys.Profile) (*keys.StoredProfile, error) {
	profiles, _ := i.app.profiles() // unreadable ones do not count
	var found []*keys.StoredProfile
	var names []string
	for _, s := range profiles {
		if sameClient(&s.Profile, p) {
			found, names = append(found, s), append(names, s.Name)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	return nil, cli.Misuse(fmt.Errorf("several hosts belong to this client and gateway: %s", strings.Join(names, ", ")),
		"import the token once for each: --name HOST")
}

// add writes a new host.
func (i *importing) add(cmd *cobra.Command, dir string, p *keys.Profile) error {
	if err := keys.WriteProfile(dir, p, i.replace); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "imported %s: %s as %s%s\n", p.Name, whereis(p), p.Client, offered(p))
	if p.IsFleet() {
		cli.Note(cmd, "%s is a fleet: %s", p.Name, chooseGateway(p))
	}
	return nil
}

// over overwrites another host if --replace is given.
func (i *importing) over(cmd *cobra.Command, dir string, there *keys.StoredProfile, p *keys.Profile) error {
	if !i.replace {
		return cli.Fail(fmt.Errorf("host %s already exists and is a different one: %s as %s", there.Name,
			whereis(&there.Profile), there.Client),
			"add the new one under another name with --name, or overwrite the old one with --replace")
	}
	p.Name = there.Name
	if err := i.add(cmd, dir, p); err != nil {
		return err
	}
	i.app.discard(cmd, there)
	if there.Locked() {
		cli.Note(cmd, "%s is no longer locked; to lock it again: spa-client lock %[1]s", p.Name)
	}
	return nil
}

// renew gives a host its new key. It keeps what the user may have chosen, and takes the rest from the token.
func (i *importing) renew(cmd *cobra.Command, there *keys.StoredProfile, p *keys.Profile) error {
	old, passphrase, err := i.app.open(cmd.Context(), there)
	if err != nil {
		return err
	}
	next := *old
	next.Gate, next.ID, next.Key = p.Gate, p.ID, p.Key
	next.KnockPorts, next.Receipts, next.Recovery = p.KnockPorts, p.Receipts, p.Recovery
	next.Gateways = p.Gateways
	if p.IsFleet() {
		next.Address = cmp.Or(next.Address, p.Address) // the token's gateways may be in it
	}
	next.Services = make(map[string][]string)
	for _, services := range []map[string][]string{old.Services, p.Services} {
		maps.Copy(next.Services, services)
	}
	s := &keys.StoredProfile{Profile: next}
	if there.Locked() {
		if s, err = next.Lock(passphrase, there.Keyring()); err != nil {
			return err
		}
	}
	if err := i.app.store(there, s); err != nil {
		return err
	}
	told := "%s has its new key: %s as %s%s\n"
	if old.ID == p.ID && old.Key.Equal(p.Key) {
		told = "%s already had this key: %s as %s%s\n"
	}
	fmt.Fprintf(cmd.OutOrStdout(), told, next.Name, whereis(&next), next.Client, offered(&next))
	if next.Address != p.Address {
		what := "address"
		if p.IsFleet() {
			what = "domain"
		}
		cli.Note(cmd, "the token has the %s %s, but the host keeps %s; to take everything from the token: --replace",
			what, cmp.Or(p.Address, "(none)"), cmp.Or(next.Address, "(none)"))
	}
	return nil
}

// offered returns a profile's services in brackets.
func offered(p *keys.Profile) string {
	if len(p.Services) == 0 {
		return ""
	}
	return " (" + strings.Join(serviceNames(p), ", ") + ")"
}

// maxInput is larger than any token, even in UTF-16.
const maxInput = 2 << 20

// readToken reads a token from a file, standard input, or text pasted at a terminal.
func readToken(cmd *cobra.Command, file string) (*keys.Profile, error) {
	data, err := readInput(cmd, file)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return parseInput(data)
}

// parseInput parses a token, or the words of one.
func parseInput(data []byte) (*keys.Profile, error) {
	text := decoded(data)
	p, err := keys.ParseToken(text)
	if err == nil {
		return p, nil
	}
	if !mayBeWords(text) {
		return nil, noToken(err, data)
	}
	if p, err = keys.ParseWords(text); err != nil {
		return nil, noWords(err)
	}
	return p, nil
}

// noToken explains as far as possible why the input is not a token.
func noToken(err error, data []byte) error {
	text := strings.TrimSpace(decoded(data))
	hint := "a token is one line, as spa-keygen new printed it, from spa1 to its end (a fleet's: from spa2)"
	switch {
	case len(text) == 0:
		err = errors.New("no token: the input is empty")
	case strings.ContainsRune(text, 0) || !utf8.ValidString(text):
		hint = "the input is not text; for a picture of a QR code: zbarimg --raw PICTURE | spa-client import -"
	case len(data) >= tty.MaxLine:
		hint += "; a line at a terminal holds at most 4095 characters: put the token into a file"
	case strings.ContainsAny(text, "\r\n"):
		hint += "; the input has several lines: join them without spaces, or remove the others"
	}
	return cli.Fail(err, hint)
}

// decoded returns the text without a byte order mark, in the encoding that the mark names: PowerShell on Windows writes
// UTF-16 into files.
func decoded(data []byte) string {
	var order binary.ByteOrder = binary.LittleEndian
	switch {
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	case !bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		return strings.TrimPrefix(string(data), "\ufeff")
	}
	var units []uint16
	for pair := range slices.Chunk(data[2:len(data)&^1], 2) {
		units = append(units, order.Uint16(pair))
	}
	return string(utf16.Decode(units))
}

func readInput(cmd *cobra.Command, file string) ([]byte, error) {
	if file != "-" {
		return tty.Interruptible(cmd.Context(), func() ([]byte, error) { return readFile(file) })
	}
	if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		return pasteToken(cmd.Context(), in, cmd.ErrOrStderr(), "paste the token (not shown): ")
	}
	return readAll(cmd.Context(), cmd.InOrStdin())
}

// readFile reads a file. Opening a pipe that has no writer yet blocks too.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxInput))
}

func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	return tty.Interruptible(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(r, maxInput)) })
}
