package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// noteModules notes what is in a program, by its own account.
func (r *release) noteModules(program, path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return err
	}
	r.note(program, &debug.Module{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")})
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		r.note(program, m)
	}
	return nil
}

func (r *release) note(program string, m *debug.Module) {
	url := "pkg:golang/" + m.Path + "@" + m.Version
	r.modules[url] = m
	if !slices.Contains(r.programs[program], url) {
		r.programs[program] = append(r.programs[program], url)
	}
}

// writeSBOM writes one list for all targets: each program, and what it has on any of them.
func (r *release) writeSBOM() error {
	bom := cyclonedx.NewBOM()
	self := cyclonedx.Component{BOMRef: "sallyport", Type: cyclonedx.ComponentTypeApplication, Name: "sallyport",
		Version: r.version}
	bom.Metadata = &cyclonedx.Metadata{Timestamp: r.time.Format("2006-01-02T15:04:05Z"), Component: &self}
	var components []cyclonedx.Component
	needs := []cyclonedx.Dependency{need("sallyport", sorted(r.programs))}
	for _, program := range sorted(r.programs) {
		components = append(components, cyclonedx.Component{BOMRef: program, Type: cyclonedx.ComponentTypeApplication,
			Name: program, Version: r.version})
		slices.Sort(r.programs[program])
		needs = append(needs, need(program, r.programs[program]))
	}
	for _, url := range sorted(r.modules) {
		m := r.modules[url]
		c := cyclonedx.Component{BOMRef: url, Type: cyclonedx.ComponentTypeLibrary, Name: m.Path, Version: m.Version,
			PackageURL: url}
		if m.Sum != "" {
			c.Properties = &[]cyclonedx.Property{{Name: "go.sum", Value: m.Sum}}
		}
		components = append(components, c)
	}
	bom.Components, bom.Dependencies = &components, &needs
	file, err := os.Create(filepath.Join(r.out, fmt.Sprintf("sallyport_%s.cdx.json", r.version)))
	if err != nil {
		return err
	}
	if err := cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return err
	}
	return file.Close()
}

func need(ref string, on []string) cyclonedx.Dependency {
	return cyclonedx.Dependency{Ref: ref, Dependencies: &on}
}
