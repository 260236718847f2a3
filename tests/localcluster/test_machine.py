"""Reading what the machine says: packages, networks, mounts, Go, apt's configuration."""

from pathlib import Path

import pytest

from localcluster import baseimage, cleanup, network, overlay, packages, tools
from localcluster.layout import ClusterError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ID=debian\nVERSION_ID=12\n", {"debian"}),
        ('ID=ubuntu\nID_LIKE="debian"\n', {"ubuntu", "debian"}),
        ("ID=fedora\n", {"fedora"}),
    ],
)
def test_the_distribution_is_read_from_os_release(text: str, names: set[str]) -> None:
    assert packages.parse_os_release(text) == names


def test_missing_packages_are_those_whose_part_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "NEEDED", {"shell": "sh", "nothing": "no-such-command-anywhere"})
    assert packages.missing() == ["nothing"]
    assert packages.report() == 1


def test_nodes_without_root_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"need root.*--nodes 0"):
        packages.ensure()


def test_the_first_block_that_overlaps_nothing_is_chosen() -> None:
    assert network.choose_block([]) == 100
    assert network.choose_block(["10.100.0.0/16", "192.0.2.0/24", "10.101.7.0/24"]) == 102
    with pytest.raises(ClusterError, match="no free address range"):
        network.choose_block(["10.0.0.0/8"])


def test_pods_never_get_a_name_server_on_the_hosts_loopback() -> None:
    stub = "nameserver 127.0.0.53\noptions edns0\n"
    real = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"
    assert network.pod_resolv_conf([stub, real]) == "nameserver 192.0.2.53\n"
    assert network.pod_resolv_conf([stub]) == ""


def test_mounts_are_undone_in_reverse_order_and_only_below_our_folders() -> None:
    lines = [
        "1 0 8:1 / / rw - ext4 disk rw",
        "2 1 0:5 / /some/c/a rw - tmpfs t rw",
        r"3 2 0:6 / /some/c/a/b\040b rw - tmpfs t rw",
        "4 1 0:7 / /some/cc rw - tmpfs t rw",
    ]
    found = cleanup.mounts_below("\n".join(lines), [Path("/some/c")])
    assert found == ["/some/c/a/b b", "/some/c/a"]


def test_the_mirror_is_found_in_both_formats_of_apt() -> None:
    new = "Types: deb\n# a note\nURIs: mirror:one\nSuites: bookworm bookworm-updates\n"
    old = "# old\ndeb [signed-by=x] mirror:two bookworm main\n"
    assert baseimage.mirror_for("bookworm", [new]) == "mirror:one"
    assert baseimage.mirror_for("bookworm", [old]) == "mirror:two"
    assert baseimage.mirror_for("trixie", [new, old]) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go 1.25.0", (1, 25, 0)),
        ("nonsense", (0,)),
    ],
)
def test_versions_of_go_are_compared_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert tools.parse_go_version(text) == version


def test_the_folder_of_programs_changes_with_everything_they_are_made_of(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text(name)
    first = tools.fingerprint(tmp_path, "go1")
    assert tools.fingerprint(tmp_path, "go1") == first
    assert tools.fingerprint(tmp_path, "go2") != first
    (tmp_path / "main.go").write_text("changed")
    assert tools.fingerprint(tmp_path, "go1") != first


def test_kubernetes_and_its_published_parts_are_pinned_to_the_same_release() -> None:
    go_mod = (tools.MODULE / "go.mod").read_text()
    minor = tools.kubernetes_version(go_mod).split(".", 1)[1]
    replaced = [line for line in go_mod.splitlines() if line.startswith("replace k8s.io/")]
    assert len(replaced) > 25
    assert all(line.endswith(f" v0.{minor}") for line in replaced)


def test_an_unknown_tool_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"unknown: nonsense; there are: .*kubectl"):
        tools.ensure(["nonsense"])


def test_only_the_one_import_is_left_out_of_a_program() -> None:
    source = 'import (\n\t"x/y"\n\t_ "x/plugins" // Register.\n)\n'
    assert overlay.without_import(source, "x/plugins") == 'import (\n\t"x/y"\n)\n'
