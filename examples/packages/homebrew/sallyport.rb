# The client, built from a release's source. Fill in homepage, url and the sum of the archive.
class Sallyport < Formula
  desc "Open a gateway's port to this address with one encrypted packet"
  homepage "https://example.net/sallyport"
  url "https://example.net/sallyport/sallyport-0.0.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"

  depends_on "go" => :build

  def install
    ENV["CGO_ENABLED"] = "0"
    system "go", "build", *std_go_args(ldflags: "-s", output: bin/"spa-client"), "./cmd/spa-client"
    man1.install "cmd/spa-client/spa-client.1"
    man5.install "cmd/spa-client/spa-host.toml.5"
    generate_completions_from_executable(bin/"spa-client", "completion")
  end

  test do
    assert_match "no host is known yet", shell_output("#{bin}/spa-client hosts --config #{testpath} 2>&1")
  end
end
