package sandbox

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// The lists of other architectures are checked against the sources of Go: a call that Go's runtime makes but the list
// lacks would stop the daemon, and only there.

// sources maps architectures to the names of files: ours, and the runtime's.
var sources = map[string]struct{ ours, runtime string }{
	"386": {"386", "386"}, "amd64": {"amd64", "amd64"}, "arm": {"arm", "arm"},
	"arm64": {"generic", "arm64"}, "loong64": {"generic", "loong64"}, "riscv64": {"generic", "riscv64"},
	"mips": {"mipsx", "mipsx"}, "mipsle": {"mipsx", "mipsx"}, "mips64": {"mips64x", "mips64x"},
	"mips64le": {"mips64x", "mips64x"},
}

// onlyAtStart are calls that the runtime makes before main, to profile, when it crashes, or on Android; and a name that
// is not a call.
var onlyAtStart = strings.Fields(`ACCESS FACCESSAT CONNECT SOCKET SOCKETCALL OPEN OPENAT PIPE2 MINCORE UNAME
	ARCH_PRCTL SETTITIMER SETITIMER SETITTIMER TIMER_CREATE TIMER_DELETE TIMER_SETTIME TIMER_SETTIME64
	PSELECT6 TKILL BASE`)

// wrappers are the functions of packages syscall, unix and internal/syscall/unix that the daemon uses.
var wrappers = strings.Fields(`
	openat Openat fstat Fstat fstatat Fstatat Getdents ReadDirent readlinkat Readlinkat fcntl Fcntl
	pread Pread pwrite Pwrite Fallocate read write Close Seek seek Fsync Fdatasync flock Flock unlinkat Unlinkat
	accept4 shutdown Shutdown sendto recvfrom sendmsg recvmsg getsockopt setsockopt getsockname
	getpeername wait4 waitid Waitid Getuid Geteuid Getgid Getegid ppoll Poll InotifyRmWatch munmap
	Munmap Madvise ClockGettime`)

func TestRuntimesCallsAreAllowed(t *testing.T) {
	for arch := range audit {
		have := namesIn(t, "calls_linux.go", "forAnyProgram")
		maps.Copy(have, namesIn(t, "calls_linux_"+sources[arch].ours+".go", "runtimeCalls", "mmaps"))
		for _, file := range []string{"runtime/sys_linux_" + sources[arch].runtime + ".s",
			"internal/runtime/syscall/linux/defs_linux_" + sources[arch].runtime + ".go"} {
			found := regexp.MustCompile(`(?m)(?:#define\s+|^\s+)SYS_(\w+)\s`).FindAllStringSubmatch(read(t,
				filepath.Join(goroot(t), "src", file)), -1)
			if len(found) == 0 {
				t.Fatalf("%s names no system call", file)
			}
			for _, match := range found {
				if name := strings.ToUpper(match[1]); !have[name] && !slices.Contains(onlyAtStart, name) {
					t.Errorf("%s: %s has %s, and the list does not", arch, file, name)
				}
			}
		}
	}
}

func TestWrappersCallsAreAllowed(t *testing.T) {
	for arch := range audit {
		have := namesIn(t, "calls_linux.go", "forAnyProgram", "forDaemon")
		maps.Copy(have, namesIn(t, "calls_linux_"+sources[arch].ours+".go", "runtimeCalls", "mmaps",
			"daemonCalls", "ofSockets"))
		for _, dir := range []string{filepath.Join(goroot(t), "src/syscall"), goDir(t, "golang.org/x/sys/unix")} {
			var source strings.Builder
			for _, file := range []string{"syscall_linux", "zsyscall_linux", "syscall_linux_" + arch,
				"syscall_linux_" + sources[arch].runtime, "zsyscall_linux_" + arch} {
				text, err := os.ReadFile(filepath.Join(dir, file+".go"))
				if err == nil {
					source.Write(text)
				}
			}
			for _, body := range regexp.MustCompile(`(?s)\nfunc (\w+)\(.*?\n}\n`).FindAllStringSubmatch(source.String(), -1) {
				if !slices.Contains(wrappers, body[1]) {
					continue
				}
				for _, name := range regexp.MustCompile(`\bSYS_(\w+)`).FindAllStringSubmatch(body[0], -1) {
					if !have[name[1]] {
						t.Errorf("%s: %s of %s makes %s, and the list does not have it", arch, body[1], dir, name[1])
					}
				}
			}
		}
	}
}

// namesIn returns the system calls named in a file's declarations.
func namesIn(t *testing.T, file string, declarations ...string) map[string]bool {
	t.Helper()
	f := lab.Value(parser.ParseFile(token.NewFileSet(), file, nil, 0))(t)
	names := map[string]bool{"FSTATAT": true} // NEWFSTATAT under another name on arm64 and riscv64
	collect := func(n ast.Node) bool {
		if selector, ok := n.(*ast.SelectorExpr); ok {
			if name, ok := strings.CutPrefix(selector.Sel.Name, "SYS_"); ok {
				names[name] = true
			}
		}
		return true
	}
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if slices.Contains(declarations, d.Name.Name) {
				ast.Inspect(d, collect)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok && slices.Contains(declarations, v.Names[0].Name) {
					ast.Inspect(v, collect)
				}
			}
		}
	}
	return names
}

func read(t *testing.T, path string) string {
	t.Helper()
	text := lab.Value(os.ReadFile(path))(t)
	return string(text)
}

func goroot(t *testing.T) string { return goSays(t, "env", "GOROOT") }

func goDir(t *testing.T, pkg string) string { return goSays(t, "list", "-f", "{{.Dir}}", pkg) }

func goSays(t *testing.T, args ...string) string {
	t.Helper()
	out := lab.Value(exec.Command("go", args...).Output())(t)
	return strings.TrimSpace(string(out))
}
