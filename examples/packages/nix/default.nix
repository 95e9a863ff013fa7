# Sallyport from the source that this file is in. After the first try, fill in the vendorHash that Nix prints.
{ pkgs ? import <nixpkgs> { } }:

pkgs.buildGoModule {
  pname = "sallyport";
  version = "0.0.0";
  src = ../../..;
  vendorHash = pkgs.lib.fakeHash;

  subPackages = [ "cmd/spa-client" "cmd/spa-fleet" ]
    ++ pkgs.lib.optionals pkgs.stdenv.hostPlatform.isLinux [ "cmd/spa-server" "cmd/spa-keygen" ];
  env.CGO_ENABLED = 0;
  ldflags = [ "-s" ];
  doCheck = false; # the tests make network namespaces

  nativeBuildInputs = [ pkgs.installShellFiles ];
  postInstall = ''
    for program in $out/bin/*; do
      name=$(basename $program)
      installManPage cmd/$name/*.[158]
      installShellCompletion --cmd $name \
        --bash <($program completion bash) --zsh <($program completion zsh) --fish <($program completion fish)
    done
  '' + pkgs.lib.optionalString pkgs.stdenv.hostPlatform.isLinux ''
    mkdir -p $out/lib/systemd/system
    for unit in bastion/spa-guard bastion/spa-guard-root bastion/spa-server fleet/spa-fleet-agent; do
      substitute examples/$unit.service $out/lib/systemd/system/$(basename $unit).service \
        --replace-fail /usr/local/bin $out/bin
    done
  '';

  meta = {
    description = "Keep ports shut until a client knocks with a key";
    license = pkgs.lib.licenses.mit;
    platforms = pkgs.lib.platforms.unix;
  };
}
