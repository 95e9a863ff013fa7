package place

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"

	"golang.org/x/sys/windows"
)

// TestWindowsFiles: a file that we write is readable only by the user, and a file that everyone can read is refused.
func TestWindowsFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gw.toml")
	lab.Must(t, Write(path, []byte("a secret"), OnlyNew, ForOwner))
	if _, err := FolderOf(path).Read("gw.toml", 99, Own); err != nil {
		t.Fatal(err)
	}
	a, err := accessListOf(path)
	if err != nil || a.trouble() != "" || len(a.entries) != 3 {
		t.Errorf("got %+v, %v", a, err)
	}
	sd := lab.Value(windows.SecurityDescriptorFromString("D:P(A;;FA;;;WD)"))(t)
	dacl, _, err := sd.DACL()
	lab.Must(t, err)
	lab.Must(t, windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION, nil,
		nil, dacl, nil))
	if _, err := FolderOf(path).Read("gw.toml", 99, Own); !errors.Is(err, ErrExposed) {
		t.Errorf("got %v, want ErrExposed", err)
	}
	lab.Must(t, os.Remove(path))
}
