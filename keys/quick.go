package keys

import (
	"bytes"
	"slices"
	"strings"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

// clientHeader is the comment at the start of a client file that this program wrote.
const clientHeader = "# A client of this gateway. The key is a secret: nobody else may read this file.\n"

// A quick reader reads the files that this program wrote and that have nothing but an id, a key and a list of services:
// most files of most gateways, in a third of the time. It is sure of what it reads, and leaves everything else to the
// strict parser. Only one goroutine may use it.
type quick struct {
	files  *place.Many
	schema strict.Schema
	buf    [4096]byte
	terms  map[string]*Client // by their list of services, which is all that they have
}

func newQuick(files *place.Many) *quick {
	return &quick{files: files, schema: strict.Schema{}, terms: make(map[string]*Client)}
}

// read returns the client in a file; nil if the strict parser must look at it.
func (q *quick) read(name string) *record {
	n, ok := q.files.Read(name+Suffix, q.buf[:])
	if !ok {
		return nil
	}
	return q.parse(name, q.buf[:n])
}

// parse returns the client in a text that is written exactly as text writes it.
func (q *quick) parse(name string, text []byte) *record {
	text = bytes.TrimPrefix(text, []byte(clientHeader))
	id, text, idOK := cut(text, "version = 1\nid = \"", "\"\n")
	key, text, keyOK := cut(text, "key = \"", "\"\n")
	list, text, listOK := cut(text, "allow = [", "]\n")
	if !idOK || !keyOK || !listOK || len(text) > 0 {
		return nil
	}
	c := &record{name: name}
	var err error
	if c.id, err = ParseID(string(id)); err != nil {
		return nil
	}
	if c.terms = q.allow(list); c.terms == nil {
		return nil
	}
	if c.key, err = parseKey(string(key)); err != nil {
		return nil
	}
	return c
}

// cut returns what stands in text between before, with which it begins, and after, and what follows that.
func cut(text []byte, before, after string) (inner, rest []byte, ok bool) {
	text, begins := bytes.CutPrefix(text, []byte(before))
	inner, rest, ends := bytes.Cut(text, []byte(after))
	return inner, rest, begins && ends
}

// allow returns the terms with a list of services that is written as list writes it; nil if it is another.
func (q *quick) allow(text []byte) *Client {
	if known, ok := q.terms[string(text)]; ok {
		return known
	}
	var entries []string
	for quotedEntry := range strings.SplitSeq(string(text), ", ") {
		entry, ok := strings.CutPrefix(quotedEntry, `"`)
		entry, closed := strings.CutSuffix(entry, `"`)
		if !ok || !closed || validAllow(entry) != nil || slices.Contains(entries, entry) {
			return nil
		}
		entries = append(entries, entry)
	}
	terms := &Client{Allow: entries}
	q.terms[string(text)] = terms
	return terms
}
