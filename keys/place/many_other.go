//go:build !linux

package place

// served is nothing where no server runs.
type served struct{}

func (*served) open(Folder) {}

// Read returns false: the file must be read by Folder.Read.
func (m *Many) Read(string, []byte) (int, bool) { return 0, false }

// Close closes the folder.
func (m *Many) Close() {}
