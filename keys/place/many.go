package place

// Many reads many files of one folder: with fewer system calls for each, and with one look at the directory for all.
// It reads only what Folder.Read would return without an error: for everything else, and for the error, that must be
// called.
type Many struct {
	folder Folder
	served
}

// ReadMany returns a Many for the files of d that a server reads, which must pass Served. It is used for a moment: the
// owner of the directory is that of its start. Close it.
func (d Folder) ReadMany() *Many {
	m := &Many{folder: d}
	m.open(d)
	return m
}
