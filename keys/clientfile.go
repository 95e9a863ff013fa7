package keys

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// A client file is about 200 bytes; lists of networks may make it longer.
const maxClientFile = 64 << 10

// Suffix ends the names of client files and host profiles.
const Suffix = ".toml"

type rawClient struct {
	Version       int64        `toml:"version"`
	ID            string       `toml:"id"`
	Key           string       `toml:"key"`
	Allow         []string     `toml:"allow"`
	From          []string     `toml:"from"`
	Deny          []string     `toml:"deny"`
	Widest4       *int64       `toml:"widest4"`
	Widest6       *int64       `toml:"widest6"`
	Delegate      []string     `toml:"delegate"`
	Expires       *time.Time   `toml:"expires"`
	MaxFor        *string      `toml:"max_for"`
	RequireSource bool         `toml:"require_source"`
	When          []string     `toml:"when"`
	Previous      *rawPrevious `toml:"previous"`
	Revoked       *time.Time   `toml:"revoked"`
	Recovery      *int64       `toml:"recovery"`
}

type rawPrevious struct {
	ID    string    `toml:"id"`
	Key   string    `toml:"key"`
	Until time.Time `toml:"until"`
}

// ReadClient reads a client file, NAME.toml. Its error is a *place.FileError or several of them joined, wraps
// place.ErrExposed, or comes from the file system.
func ReadClient(path string) (*Client, error) {
	return readClient(place.FolderOf(path), filepath.Base(path), strict.Schema{})
}

func readClient(d place.Folder, file string, s strict.Schema) (*Client, error) {
	c, _, err := readClientDoc(d, file, place.Served, s)
	return c, err
}

func readClientDoc(d place.Folder, file string, check place.Check, s strict.Schema) (*Client, *strict.Document, error) {
	name, err := fileName(filepath.Join(d.Path, file))
	if err != nil {
		return nil, nil, err
	}
	var raw rawClient
	doc, err := readSecret(d, file, maxClientFile, check, &raw, s)
	if err != nil {
		return nil, nil, err
	}
	c, err := raw.client(doc, name)
	return c, doc, err
}

// readSecret decodes a file with secrets into the struct that dst points to.
func readSecret(d place.Folder, file string, limit int64, check place.Check, dst any,
	s strict.Schema) (*strict.Document, error) {
	text, err := d.Read(file, limit, check)
	if err != nil {
		return nil, err
	}
	return s.Decode(filepath.Join(d.Path, file), text, dst)
}

// fileName returns NAME for a file NAME.toml.
func fileName(path string) (string, error) {
	name, ok := strings.CutSuffix(filepath.Base(path), Suffix)
	if !ok || service.ValidName(name) != nil {
		return "", misnamed(path)
	}
	return strings.Clone(name), nil // else the whole path would stay in memory with a client
}

func misnamed(path string) error {
	return &place.FileError{File: path, Text: "is not named NAME.toml, with lower-case letters, digits and hyphens in NAME"}
}

// reader collects what is wrong with the values of a document.
type reader struct {
	doc      *strict.Document
	problems []error
}

// must notes an error about a key. No error quotes a value that may be a secret.
func (r *reader) must(key string, err error) {
	if err != nil {
		r.problems = append(r.problems, r.doc.Problem(key, "%s", err))
	}
}

// needs notes the missing keys, and reports whether there are none.
func (r *reader) needs(keys ...string) bool {
	all := true
	for _, key := range keys {
		if !r.doc.Has(key) {
			r.must(key, errors.New("missing"))
			all = false
		}
	}
	return all
}

func (raw *rawClient) client(d *strict.Document, name string) (*Client, error) {
	r := reader{doc: d}
	// Looking for a key parses the file again: do so only if it may be missing.
	if (raw.ID == "" || raw.Key == "" || raw.Allow == nil) && !r.needs("id", "key", "allow") {
		return nil, errors.Join(r.problems...)
	}
	c := &Client{Name: name, Allow: raw.Allow, RequireSource: raw.RequireSource}
	c.ID, c.Key = r.credential("", raw.ID, raw.Key)
	c.Previous = r.previous(raw)
	c.Recovery = r.recovery(raw)
	r.terms(raw, c)
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return c, nil
}

// terms reads everything but keys.
func (r *reader) terms(raw *rawClient, c *Client) {
	r.allow(raw.Allow)
	c.From, c.Deny = r.prefixes("from", raw.From), r.prefixes("deny", raw.Deny)
	if raw.From != nil && len(raw.From) == 0 {
		r.must("from", errors.New("is empty, so no address could knock: leave the line out to allow any"))
	}
	r.networks(raw, c)
	c.Expires, c.Revoked = r.time("expires", raw.Expires), r.time("revoked", raw.Revoked)
	if raw.MaxFor != nil {
		c.MaxFor = r.duration("max_for", *raw.MaxFor)
	}
	if raw.When != nil {
		var err error
		c.When, err = service.ParseSpans(raw.When)
		r.must("when", err)
	}
}

// credential reads an id and a key below prefix ("" or "previous.").
func (r *reader) credential(prefix, id, key string) (ID, Key) {
	i, err := ParseID(id)
	r.must(prefix+"id", err)
	k, err := parseKey(key)
	r.must(prefix+"key", err)
	return i, k
}

func (r *reader) allow(entries []string) {
	for i, entry := range entries {
		if err := validAllow(entry); err != nil {
			r.must("allow", fmt.Errorf("entry %d is not a service or port: %w", i+1, err))
		}
		if slices.Contains(entries[:i], entry) {
			r.must("allow", fmt.Errorf("entry %d is listed twice", i+1))
		}
	}
}

func (r *reader) duration(key, text string) time.Duration {
	d, err := service.ParseDuration(text)
	r.must(key, err)
	return d
}

// time reads an optional time. It refuses the zero time, which would count as missing and open what the file shuts.
func (r *reader) time(key string, t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	if t.IsZero() {
		r.must(key, errors.New("is not a date: the year 1 means no date"))
	}
	return t.UTC()
}

func (r *reader) prefixes(key string, texts []string) []netip.Prefix {
	if len(texts) == 0 {
		return nil
	}
	list := make([]netip.Prefix, 0, len(texts))
	for i, text := range texts {
		p, err := service.ParsePrefix(text)
		if err != nil {
			r.must(key, fmt.Errorf("entry %d: %w", i+1, err))
		}
		list = append(list, p)
	}
	return list
}

func (r *reader) previous(raw *rawClient) *Previous {
	if raw.Previous == nil || !r.needs("previous.id", "previous.key", "previous.until") {
		return nil
	}
	p := &Previous{Until: r.time("previous.until", &raw.Previous.Until)}
	p.ID, p.Key = r.credential("previous.", raw.Previous.ID, raw.Previous.Key)
	if raw.Previous.ID == raw.ID {
		r.must("previous.id", errors.New("is the id of the current key: a previous key has another"))
	}
	return p
}

func (r *reader) recovery(raw *rawClient) int {
	if raw.Recovery == nil {
		return 0
	}
	if uses := *raw.Recovery; uses < 1 || uses > MaxUses {
		r.must("recovery", fmt.Errorf("the number of uses is 1 to %d", MaxUses))
		return 0
	}
	return int(*raw.Recovery)
}

// WriteClient writes dir/NAME.toml, whole or not at all, for the server to read. Written by root it belongs to root and
// the directory's group, 0640, or, if that is root's group too, to the directory's owner, 0600.
//
// With create it never overwrites a file (place.ErrExists); without, it replaces one that must exist.
func WriteClient(dir string, c *Client, create bool) error {
	if err := service.ValidName(c.Name); err != nil {
		return err // including a name that leads out of the directory
	}
	path := filepath.Join(dir, c.Name+Suffix)
	text := c.text()
	if err := readsBack(path, text); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	how := place.OnlyOver
	if create {
		how = place.OnlyNew
	}
	return place.Write(path, text, how, place.ForService)
}

// readsBack returns an error if ReadClient would refuse the text, which must then not be written.
func readsBack(path string, text []byte) error {
	_, err := clientOf(path, "", text)
	return err
}

// text returns the client file. All values were checked to need no escapes in TOML.
func (c *Client) text() []byte {
	var b strings.Builder
	b.WriteString(clientHeader)
	fmt.Fprintf(&b, "version = %d\nid = \"%s\"\nkey = \"%s\"\nallow = %s\n", strict.Version, c.ID,
		c.Key.Reveal(), list(c.Allow))
	c.writeTerms(&b)
	if c.Recovery != 0 {
		fmt.Fprintf(&b, "recovery = %d\n", c.Recovery)
	}
	if p := c.Previous; p != nil {
		fmt.Fprintf(&b, "previous = %s\n", p.text())
	}
	if !c.Revoked.IsZero() {
		fmt.Fprintf(&b, "revoked = %s\n", timeText(c.Revoked))
	}
	return []byte(b.String())
}

// writeTerms writes the limits of what it may open.
func (c *Client) writeTerms(b *strings.Builder) {
	if len(c.From) > 0 {
		fmt.Fprintf(b, "from = %s\n", list(prefixTexts(c.From)))
	}
	if len(c.Deny) > 0 {
		fmt.Fprintf(b, "deny = %s\n", list(prefixTexts(c.Deny)))
	}
	c.writeNetworks(b)
	if !c.Expires.IsZero() {
		fmt.Fprintf(b, "expires = %s\n", timeText(c.Expires))
	}
	if c.MaxFor != 0 {
		fmt.Fprintf(b, "max_for = \"%s\"\n", service.FormatDuration(c.MaxFor))
	}
	if c.RequireSource {
		b.WriteString("require_source = true\n")
	}
	if len(c.When) > 0 {
		fmt.Fprintf(b, "when = %s\n", list(service.SpanTexts(c.When)))
	}
}

// text returns the value of previous.
func (p *Previous) text() string {
	return fmt.Sprintf("{ id = \"%s\", key = \"%s\", until = %s }", p.ID, p.Key.Reveal(), timeText(p.Until))
}

// list returns a TOML list of texts.
func list(texts []string) string {
	quoted := make([]string, len(texts))
	for i, s := range texts {
		quoted[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func prefixTexts(prefixes []netip.Prefix) []string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return texts
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// validAllow checks an entry of a client's allow list: the name of a service, or ports.
func validAllow(s string) error {
	if strings.Contains(s, "/") {
		return validPorts(s)
	}
	return service.ValidName(s)
}

// validPorts checks ports in a file. Its error quotes nothing: a key may stand there by mistake.
func validPorts(s string) error {
	if _, err := service.ParsePorts(s); err != nil {
		return errors.New(`ports are written "tcp/22" or "udp/60000-60010"`)
	}
	return nil
}
