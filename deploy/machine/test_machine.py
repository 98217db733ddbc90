"""Tests of what runs on a machine, against a small metadata service in this process.

    python3 deploy/machine/test_machine.py

Run by `control/workflow/tests/machine.rs`, too. Standard library only; changes nothing outside a temporary folder.
"""

import email.parser
import email.policy
import http.server
import importlib.machinery
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest
from urllib.parse import parse_qs, unquote

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = {
    "10-good": "#!/bin/sh\necho out\necho err >&2\nprintf 'status: passed\\n' > \"$RESULT_PATH\"\n",
    "20-bad": "#!/bin/sh\necho broken\nexit 3\n",
    "30-slow": "#!/bin/sh\necho started\nsleep 60 & sleep 60\n",
    "40-stubborn": "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n",
    "50-leaves-children": "#!/bin/sh\nsleep 60 &\necho done\n",
    "60-loud": "#!/bin/sh\nhead -c 5000000 /dev/zero\n",
    "70-no-interpreter": "#!/nowhere/at/all\n",
    "90-finished": "#!/bin/sh\nexit 1\n",
}


class Service:
    """The metadata service: records signals, and misbehaves on demand."""

    def __init__(self, scripts, failures=0, skew_secs=0, refuse=None):
        self.scripts, self.failures, self.skew_secs = scripts, failures, skew_secs
        self.refuse = refuse
        self.signals, self.requests = [], 0
        self.lock = threading.Lock()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + service.skew_secs)

            def do_GET(self):
                service.answer(self, b"")

            def do_POST(self):
                service.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/MAAS/metadata/"

    def answer(self, request, body):
        with self.lock:
            self.requests += 1
            status, content = self.decide(request, body)
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def decide(self, request, body):
        if self.failures > 0:
            self.failures -= 1
            return 503, b"later"
        fields = dict(
            (key, unquote(value.strip('"')))
            for key, _, value in (
                part.strip().partition("=") for part in request.headers["Authorization"][6:].split(",")
            )
        )
        if fields["oauth_signature"] != "&secret" or fields["oauth_token"] != "token":
            return 401, b"wrong key"
        if abs(int(fields["oauth_timestamp"]) - time.time() - self.skew_secs) > 300:
            return 401, b"Expired timestamp"
        if request.command == "GET":
            if request.path != "/MAAS/metadata/2012-03-01/maas-scripts":
                return 404, b""
            return (200, self.archive()) if self.scripts else (204, b"")
        signal = parse_form(request.headers["Content-Type"], body)
        if self.refuse and signal.get("name") == self.refuse and "exit_status" in signal:
            return 413, b"too big"
        self.signals.append(signal)
        return 200, b"OK"

    def archive(self):
        buffer = io.BytesIO()
        entries = [
            {
                "name": name,
                "path": f"commissioning/{name}",
                "script_result_id": number,
                "timeout_seconds": 1 if "slow" in name or "stubborn" in name else 30,
                "has_finished": "finished" in name,
            }
            for number, name in enumerate(self.scripts, 1)
        ]
        # Backwards: the runner orders by name. One entry wants out of its folder.
        entries.reverse()
        entries.append({"name": "00-climber", "path": "../climber", "script_result_id": 99})
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add(tar, "index.json", json.dumps({"1.0": {"commissioning_scripts": entries}}).encode())
            add(tar, "../climber", b"#!/bin/sh\n")
            for name, content in self.scripts.items():
                add(tar, f"commissioning/{name}", content.encode())
        return buffer.getvalue()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def parse_form(content_type, body):
    """With the library's own MIME parser: another reading than the region's."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    form = {"files": {}}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if part.get_filename() is None:
            form[name] = content.decode()
        else:
            form["files"][name] = content
    return form


class RunnerTest(unittest.TestCase):
    def run_against(self, service, *options, secret="secret"):
        self.addCleanup(service.close)
        with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
            config.write(
                "#cloud-config\ndatasource:\n  MAAS:\n"
                f'    metadata_url: "{service.url}"\n    consumer_key: "consumer"\n'
                f'    token_key: "token"\n    token_secret: "{secret}"\nmanage_etc_hosts: true\n'
            )
            config.flush()
            command = [os.path.join(HERE, "maas-run-scripts"), "--config", config.name]
            command += ["--quiet", "--retry-unit", "0.01", *options]
            return subprocess.run(command, timeout=60, capture_output=True, text=True)

    def results(self, service):
        ends = [s for s in service.signals if "script_result_id" in s and "runtime" in s]
        return {signal["name"]: signal for signal in ends}

    def test_every_end_of_a_script_is_told(self):
        service = Service(SCRIPTS)
        done = self.run_against(service)
        self.assertEqual(done.returncode, 1, done.stderr)
        results = self.results(service)
        self.assertEqual(sorted(results), sorted(set(SCRIPTS) - {"90-finished"}))
        self.assertEqual(list(results), sorted(results), "in name order")
        good = results["10-good"]
        self.assertEqual((good["status"], good["exit_status"]), ("WORKING", "0"))
        self.assertEqual(good["files"]["10-good.out"], b"out\n")
        self.assertEqual(good["files"]["10-good.err"], b"err\n")
        self.assertEqual(sorted(good["files"]["10-good"].split()), [b"err", b"out"])
        self.assertEqual(good["files"]["10-good.yaml"], b"status: passed\n")
        self.assertEqual(results["20-bad"]["exit_status"], "3")
        slow = results["30-slow"]
        self.assertEqual(slow["status"], "TIMEDOUT")
        self.assertNotIn("exit_status", slow)
        self.assertEqual(slow["files"]["30-slow.out"], b"started\n")
        self.assertEqual(results["40-stubborn"]["status"], "TIMEDOUT")
        self.assertEqual(results["50-leaves-children"]["exit_status"], "0")
        loud = results["60-loud"]
        self.assertEqual(len(loud["files"]["60-loud.out"]), 3 * 1024 * 1024)
        self.assertIn("cut", loud["error"])
        self.assertEqual(results["70-no-interpreter"]["exit_status"], "126")
        for number, name in enumerate(SCRIPTS, 1):
            if name in results:
                self.assertEqual(results[name]["script_result_id"], str(number))
        starts = [s for s in service.signals if s.get("error", "").startswith("Starting")]
        self.assertEqual(len(starts), len(results))
        last = service.signals[-1]
        self.assertEqual(last["status"], "FAILED")
        for name in ("20-bad", "30-slow timed out", "40-stubborn", "70-no-interpreter"):
            self.assertIn(name, last["error"])
        self.assertNotIn("10-good", last["error"])

    def test_all_well_is_ok(self):
        service = Service({"10-good": SCRIPTS["10-good"]})
        done = self.run_against(service)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual([s["status"] for s in service.signals], ["WORKING", "WORKING", "OK"])

    def test_nothing_to_run_is_ok(self):
        service = Service({})
        self.assertEqual(self.run_against(service).returncode, 0)
        self.assertEqual([s["status"] for s in service.signals], ["OK"])

    def test_it_tries_again_and_mends_its_clock(self):
        service = Service({"10-good": SCRIPTS["10-good"]}, failures=3, skew_secs=86_400)
        done = self.run_against(service)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(service.signals[-1]["status"], "OK")

    def test_a_wrong_key_ends_at_once(self):
        service = Service({"10-good": SCRIPTS["10-good"]})
        self.assertEqual(self.run_against(service, secret="wrong").returncode, 1)
        self.assertEqual(service.signals, [])
        self.assertLess(service.requests, 4)

    def test_it_heartbeats_while_a_script_runs(self):
        service = Service({"10-waits": "#!/bin/sh\nsleep 1\n"})
        self.assertEqual(self.run_against(service, "--heartbeat", "0.2").returncode, 0)
        beats = [s for s in service.signals if s["status"] == "WORKING" and "name" not in s]
        self.assertGreaterEqual(len(beats), 3)
        self.assertEqual(service.signals[-1]["status"], "OK", "no word after the last")

    def test_a_refused_result_fails_the_run(self):
        service = Service({"10-good": SCRIPTS["10-good"]}, refuse="10-good")
        self.assertEqual(self.run_against(service).returncode, 1)
        self.assertEqual(service.signals[-1]["status"], "FAILED")
        self.assertIn("413", service.signals[-1]["error"])

    def test_an_archive_that_is_none_is_told(self):
        service = Service({"10-good": ""})
        service.archive = lambda: b"not a tar"
        self.assertEqual(self.run_against(service).returncode, 1)
        self.assertEqual([s["status"] for s in service.signals], ["FAILED"])


class EnlistTest(unittest.TestCase):
    def test_it_tells_what_identifies_the_machine(self):
        forms = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                forms.append((self.path, parse_qs(body.decode())))
                # A first refusal that passes.
                status = 503 if len(forms) == 1 else 200
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory() as sysfs:
            cards = {"eth1": "52:54:00:00:00:02", "eth0": "52:54:00:00:00:01", "lo": "00:00:00:00:00:00"}
            for name, mac in cards.items():
                folder = os.path.join(sysfs, "class/net", name)
                os.makedirs(folder if name == "lo" else os.path.join(folder, "device"))
                for file, text in (("address", mac), ("type", "1")):
                    with open(os.path.join(folder, file), "w", encoding="ascii") as out:
                        out.write(text + "\n")
            url = f"http://127.0.0.1:{server.server_port}/MAAS/api/2.0/machines/"
            command = [os.path.join(HERE, "maas-enlist"), "--url", url, "--sys", sysfs, "--retry-unit", "0.01"]
            done = subprocess.run(command, timeout=60, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        path, form = forms[-1]
        self.assertEqual((len(forms), path), (2, "/MAAS/api/2.0/machines/"))
        self.assertEqual(form["mac_addresses"], ["52:54:00:00:00:01", "52:54:00:00:00:02"])
        self.assertIn("/generic", form["architecture"][0])
        self.assertNotIn("power_type", form)


def inventory_script():
    path = os.path.join(HERE, "scripts/50-maas-01-commissioning")
    loader = importlib.machinery.SourceFileLoader("inventory_script", path)
    spec = importlib.util.spec_from_loader("inventory_script", loader)
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = writes
    return module


def write(root, path, text):
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        out.write(text + "\n")


class InventoryTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.sys = os.path.realpath(folder.name)
        self.script = inventory_script()
        self.script.SYS = self.sys

    def disk(self, name, bus, files=()):
        """A block device below a folder of a bus, as sysfs links it."""
        device = os.path.join(self.sys, "devices", bus, name)
        os.makedirs(device)
        for file, text in dict(files).items():
            write(self.sys, f"block/{name}/{file}", text)
        os.makedirs(os.path.join(self.sys, "block", name), exist_ok=True)
        os.symlink(device, os.path.join(self.sys, "block", name, "device"))
        return device

    def test_hidden_paths_are_no_disks_and_media_on_usb_are_told_so(self):
        self.disk("nvme0n1", "pci0/nvme/nvme0", {"size": "1000"})
        self.disk("nvme0c0n1", "pci0/nvme/nvme0c", {"size": "1000", "hidden": "1"})
        floppy = self.disk("sdb", "pci0/usb1/1-1/host0", {"size": "2880", "ro": "0"})
        write(floppy, "vendor", "AMI")
        write(floppy, "model", "Virtual Floppy0")
        self.disk("fd0", "platform/floppy.0")
        os.makedirs(os.path.join(self.sys, "block/loop0"))
        disks = {disk["id"]: disk for disk in self.script.storage_part({})["disks"]}
        self.assertEqual({name: disk["type"] for name, disk in disks.items()},
                         {"nvme0n1": "nvme", "sdb": "usb", "fd0": "floppy"})
        self.assertEqual((disks["sdb"]["vendor"], disks["sdb"]["model"]), ("AMI", "Virtual Floppy0"))
        self.assertEqual(disks["sdb"]["size"], 2880 * 512)

    def test_virtual_functions_are_counted_at_their_card_and_odd_speeds_are_unknown(self):
        for name, speed in {"ens1f0": "25000", "ens1f1": "2147483647", "ens1f2": "-1", "ens1f3": "65535",
                            "ens1f0v0": "25000", "ens1f0v1": "25000"}.items():
            device = os.path.join(self.sys, "devices/pci0", name)
            os.makedirs(device)
            if "v" in name:
                os.makedirs(os.path.join(device, "physfn"))
            elif name == "ens1f0":
                write(device, "sriov_totalvfs", "64")
                write(device, "sriov_numvfs", "2")
            for file, text in {"type": "1", "carrier": "1", "speed": speed, "address": "52:54:00:00:00:01"}.items():
                write(self.sys, f"class/net/{name}/{file}", text)
            os.symlink(device, os.path.join(self.sys, "class/net", name, "device"))
        with open(os.devnull, "rb") as control:
            cards = self.script.network_part(control, {}, self.script.PciNames(set()))["cards"]
        speeds = {port["id"]: port["link_speed"] for card in cards for port in card["ports"]}
        self.assertEqual(speeds, {"ens1f0": 25000, "ens1f1": 0, "ens1f2": 0, "ens1f3": 0})
        counts = [card["sriov"] for card in cards if card["sriov"]]
        self.assertEqual(counts, [{"current_vfs": 2, "maximum_vfs": 64}])

    def test_infiniband_is_told_so_that_it_can_be_said_to_be_left_out(self):
        mac = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0a:6b:91"
        for name, kind in {"ib0": "32", "wwan0": "519"}.items():
            device = os.path.join(self.sys, "devices/pci0", name)
            os.makedirs(device)
            write(self.sys, f"class/net/{name}/type", kind)
            write(self.sys, f"class/net/{name}/address", mac)
            os.symlink(device, os.path.join(self.sys, "class/net", name, "device"))
        with open(os.devnull, "rb") as control:
            cards = self.script.network_part(control, {}, self.script.PciNames(set()))["cards"]
        ports = [(port["id"], port["address"], port["protocol"]) for card in cards for port in card["ports"]]
        self.assertEqual(ports, [("ib0", mac, "infiniband")])

    def test_an_inventory_of_a_great_machine_is_not_cut_on_its_way(self):
        written = self.script.written
        self.assertIn("\n", written({"cpu": {"total": 4}}))
        threads = [{"id": n, "numa_node": 0, "thread": 0, "online": True, "isolated": False} for n in range(20000)]
        great = written({"cpu": {"threads": threads}})
        self.assertNotIn("\n", great)
        self.assertLess(len(great), 2 * self.script.READABLE_MAX)
        self.assertEqual(len(json.loads(great)["cpu"]["threads"]), 20000)

    def test_a_part_that_cannot_be_read_costs_only_itself(self):
        script = self.script

        def broken():
            raise ValueError("odd")

        script.cpu_part = broken
        out, err = io.StringIO(), io.StringIO()
        stdout, stderr, sys.stdout, sys.stderr = sys.stdout, sys.stderr, out, err
        try:
            script.main()
        finally:
            sys.stdout, sys.stderr = stdout, stderr
        result = json.loads(out.getvalue())
        self.assertEqual(result["resources"]["cpu"], {})
        self.assertGreater(result["resources"]["memory"]["total"], 64 << 20)
        self.assertEqual(err.getvalue(), "broken: ValueError: odd\n")

    def test_texts_that_are_no_utf8_can_be_printed(self):
        odd = {"a\udcff": ["b\udc80", 1, None]}
        self.assertEqual(self.script.clean(odd), {"a?": ["b?", 1, None]})


class ScriptsTest(unittest.TestCase):
    def test_the_inventory_script_prints_the_contract(self):
        script = os.path.join(HERE, "scripts/50-maas-01-commissioning")
        done = subprocess.run([script], timeout=60, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        output = json.loads(done.stdout)
        self.assertEqual(sorted(output), ["api_extensions", "api_version", "environment", "networks", "resources"])
        parts = ["cpu", "gpu", "load", "memory", "network", "pci", "storage", "system", "usb"]
        self.assertEqual(sorted(output["resources"]), parts)
        self.assertEqual(output["resources"]["cpu"]["total"], os.cpu_count())
        self.assertGreater(output["resources"]["memory"]["total"], 64 << 20)
        self.assertIn("lo", output["networks"])

    def test_the_command_line_is_printed(self):
        script = os.path.join(HERE, "scripts/maas-kernel-cmdline")
        done = subprocess.run([script], timeout=10, capture_output=True)
        with open("/proc/cmdline", "rb") as cmdline:
            self.assertEqual(done.stdout, cmdline.read())

    def test_lshw_is_not_needed(self):
        script = os.path.join(HERE, "scripts/maas-lshw")
        with tempfile.TemporaryDirectory() as empty:
            command = ["/bin/sh", script]
            done = subprocess.run(command, env={"PATH": empty}, timeout=10, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        self.assertIn("skipped: no lshw", done.stderr)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=1))
