package share

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrLong means that a line is longer than MaxLine.
var ErrLong = errors.New("share: a line is too long")

// A Conn exchanges messages: each is a line of JSON. One goroutine may read; any number may write.
type Conn struct {
	r *bufio.Reader

	mu sync.Mutex // one message after the other
	w  io.Writer
}

// NewConn returns a Conn that reads and writes through rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, MaxLine), w: rw}
}

// Read reads a message. It takes no other form than that which Write writes: the peer may be hostile. After an error,
// close the connection. It returns io.EOF only between two messages.
func (c *Conn) Read() (Message, error) {
	line, err := c.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return Message{}, ErrLong
	case errors.Is(err, io.EOF) && len(line) > 0:
		return Message{}, io.ErrUnexpectedEOF
	case err != nil:
		return Message{}, err
	}
	return Parse(line)
}

// Write writes messages, together. It refuses one that Read would refuse, and then writes none.
func (c *Conn) Write(ms ...Message) error {
	var lines bytes.Buffer
	for _, m := range ms {
		line, err := m.Line()
		if err != nil {
			return err
		}
		lines.Write(line)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(lines.Bytes())
	return err
}

// Line returns the message as a line of JSON, or an error if it does not have the form of its kind.
func (m Message) Line() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("share: %w", err)
	}
	line, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("share: %w", err)
	}
	return append(line, '\n'), nil
}

// Parse parses what Line returns.
func Parse(line []byte) (Message, error) {
	var m Message
	if err := strict(line, &m); err != nil {
		return Message{}, fmt.Errorf("share: %w", err)
	}
	again, err := m.Line()
	if err != nil {
		return Message{}, err
	}
	if !bytes.Equal(line, again) { // one form: no second spelling, no field twice
		return Message{}, errForm
	}
	return m, nil
}

var errForm = errors.New("share: not in the one form that it has")

// strict decodes JSON, which must have no unknown fields and nothing after it.
func strict(text []byte, dst any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(dst); err != nil {
		return errors.New("not a JSON object of this version")
	}
	return nil
}
