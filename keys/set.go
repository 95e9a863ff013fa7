package keys

import (
	"fmt"
	"path/filepath"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// ClientKeys returns the keys of a client file that have a value, by their dotted paths.
func ClientKeys() []string { return strict.Keys(new(rawClient), "") }

// SetClient changes settings in dir/NAME.toml, given as [strict.ParseSettings] reads them: all or none. It keeps what
// people wrote into the file. It writes nothing if the file says so already, if ReadClient would refuse the result, or
// if accept, which may be nil, returns an error. It returns the client as it is then, and the keys that changed.
//
// With dry it only returns them.
func SetClient(dir, name string, args []string, dry bool, accept func(before, after *Client) error) (*Client, []string,
	error) {
	if err := service.ValidName(name); err != nil {
		return nil, nil, err // including a name that leads out of the directory
	}
	settings, err := strict.ParseSettings(new(rawClient), args)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := place.Lock(dir)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	path := filepath.Join(dir, name+Suffix)
	before, doc, err := readClientDoc(place.Folder{Path: dir}, name+Suffix, place.Private, strict.Schema{})
	if err != nil {
		return nil, nil, err
	}
	text, changed, err := doc.Set(settings)
	if err != nil || len(changed) == 0 {
		return before, nil, err
	}
	after, err := clientOf(path, name, text)
	if err != nil {
		return nil, nil, err
	}
	if accept != nil {
		if err := accept(before, after); err != nil {
			return nil, nil, err
		}
	}
	if dry {
		return after, changed, nil
	}
	return after, changed, place.Overwrite(path, doc.Text(), text)
}

// clientOf parses the text of the client file at path.
func clientOf(path, name string, text []byte) (*Client, error) {
	if len(text) > maxClientFile {
		return nil, &place.FileError{File: path, Text: fmt.Sprintf("would be larger than %d bytes", maxClientFile)}
	}
	var raw rawClient
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	return raw.client(doc, name)
}
