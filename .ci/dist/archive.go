package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// archive writes a target's archive: everything, or what a client needs.
func (r *release) archive(t target) error {
	name := fmt.Sprintf("sallyport_%s_%s_%s", r.version, t.os, t.arch)
	if t.os != "linux" {
		name = fmt.Sprintf("sallyport-client_%s_%s_%s", r.version, t.os, t.arch)
	}
	var data []byte
	files, err := r.filesOf(t)
	if err != nil {
		return err
	}
	if t.os == "windows" {
		name += ".zip"
		data, err = r.zip(files)
	} else {
		data, err = r.tar(name, files)
		name += ".tar.gz"
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, name), data, 0o644)
}

// an entry is a file in an archive.
type entry struct {
	name string
	mode fs.FileMode
	data []byte
}

func (r *release) filesOf(t target) ([]entry, error) {
	var entries []entry
	for _, program := range t.programs() {
		path := r.binary(t, program)
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{filepath.Base(path), programMode, data})
	}
	for _, f := range r.shared {
		if f.name != "" && (f.of == "" || slices.Contains(t.programs(), f.of)) {
			entries = append(entries, entry{f.name, plainMode, f.data})
		}
	}
	return entries, nil
}

// tar puts the files below a directory, so that unpacking makes one.
func (r *release) tar(dir string, entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		head := &tar.Header{Name: dir + "/" + e.name, Mode: int64(e.mode), Size: int64(len(e.data)), ModTime: r.time,
			Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(head); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return compressed(b.Bytes())
}

func (r *release) zip(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		head := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: r.time}
		head.SetMode(e.mode)
		part, err := w.CreateHeader(head)
		if err != nil {
			return nil, err
		}
		if _, err := part.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func compressed(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}
