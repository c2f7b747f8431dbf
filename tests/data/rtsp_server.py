#!/usr/bin/python3
"""A camera for the tests: an RTSP server on 127.0.0.1 that sends clips, as they are, in an endless loop.

Usage: rtsp_server.py [--port N] [--user NAME --password WORD] [--h265] [--sound] MOUNT=CLIP.mp4...

Says `port N` when it listens (without --port the kernel picks one), then does what standard input says, each
command answered by one line, `ok` or `error: reason`:

    freeze MOUNT          send nothing any more, but keep all connections open
    thaw MOUNT            go on
    clip MOUNT CLIP.mp4   send another clip from here on, to those who watch as well; its size may differ
    remove MOUNT          who asks for it from now on is told 404; who watches goes on
    add MOUNT CLIP.mp4
    kick                  close every connection
    setups                answers `ok N`: so many streams were asked for so far

It ends with its standard input. With --h265 the clips' first seconds are encoded as H.265 once, at the start.
With --sound each mount has sound as well, as its first stream.
"""

import argparse
import functools
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

# How far ahead of the clock frames are handed over.
AHEAD = 200 * Gst.MSECOND
TICK_MS = 20
# Of the clip, where it has to be encoded.
H265_FRAMES = 50

H265 = (
    "avdec_h264 ! identity eos-after=%d ! videoconvert ! video/x-raw,format=I420"
    " ! x265enc speed-preset=ultrafast tune=zerolatency key-int-max=25 ! h265parse ! video/x-h265"
) % (H265_FRAMES + 1
)
SOUND = "audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 pt=8"


class Clip:
    """The access units of a file, ready to be sent again and again."""

    def __init__(self, path, h265):
        self.encoding = "h265" if h265 else "h264"
        pipeline = Gst.parse_launch(
            "filesrc name=file ! qtdemux ! h264parse ! %s ! appsink name=units sync=false"
            % (H265 if h265 else "video/x-h264,stream-format=avc,alignment=au")
        )
        pipeline.get_by_name("file").set_property("location", path)
        sink = pipeline.get_by_name("units")
        pipeline.set_state(Gst.State.PLAYING)
        samples = list(iter(functools.partial(sink.emit, "pull-sample"), None))
        pipeline.set_state(Gst.State.NULL)
        if not samples:
            raise ValueError("%s has no frames that can be sent as %s" % (path, self.encoding))
        self.caps = samples[0].get_caps()
        self.units = [sample.get_buffer() for sample in samples]
        # Decoding times may lie before the first picture's.
        start = min(unit.pts for unit in self.units)
        self.times = [(unit.pts - start, max(unit.dts - start, 0)) for unit in self.units]
        self.duration = max(pts for pts, _ in self.times) + self.units[0].duration


@functools.lru_cache(maxsize=None)
def load(path, h265):
    return Clip(path, h265)


class Viewer:
    """Feeds one connection's appsrc, each with a loop of its own."""

    def __init__(self, source, clip):
        self.source, self.clip = source, clip
        self.next, self.offset = 0, None
        source.set_property("caps", clip.caps)

    def now(self):
        clock = self.source.get_clock()
        return clock.get_time() - self.source.get_base_time() if clock else 0

    def switch(self, clip):
        last = self.clip.times[self.next - 1][0] if self.next else 0
        self.offset = None if self.offset is None else self.offset + last
        self.clip, self.next = clip, 0
        self.source.set_property("caps", clip.caps)

    def feed(self):
        if self.offset is None:
            self.offset = self.now()
        while self.offset + self.clip.times[self.next][0] < self.now() + AHEAD:
            unit = self.clip.units[self.next].copy()
            pts, dts = self.clip.times[self.next]
            unit.pts, unit.dts = self.offset + pts, self.offset + dts
            if self.source.emit("push-buffer", unit) != Gst.FlowReturn.OK:
                return
            self.next += 1
            if self.next == len(self.clip.units):
                self.next, self.offset = 0, self.offset + self.clip.duration

    def skip_to_now(self):
        """After a pause the stream goes on with the time that has passed."""
        if self.offset is not None:
            self.offset = self.now() - self.clip.times[self.next][0]


class Mount:
    def __init__(self, server, name, clip, sound):
        self.path, self.clip, self.frozen, self.viewers = "/" + name, clip, False, []
        self.mounts = server.get_mount_points()
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(
            "( %s appsrc name=frames is-live=true format=time"
            " ! %sparse ! rtp%spay name=pay%d pt=96 config-interval=-1 )"
            % (SOUND if sound else "", clip.encoding, clip.encoding, 1 if sound else 0)
        )
        factory.connect("media-configure", self.configure)
        self.add_permissions(factory)
        self.mounts.add_factory(self.path, factory)

    @staticmethod
    def add_permissions(factory):
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_role("viewer")
        permissions.add_permission_for_role("viewer", "media.factory.access", True)
        permissions.add_permission_for_role("viewer", "media.factory.construct", True)
        factory.set_permissions(permissions)

    def configure(self, _factory, media):
        viewer = Viewer(media.get_element().get_by_name("frames"), self.clip)
        self.viewers.append(viewer)
        media.connect("unprepared", lambda _media: viewer in self.viewers and self.viewers.remove(viewer))

    def tick(self):
        if not self.frozen:
            for viewer in list(self.viewers):
                viewer.feed()

    def freeze(self):
        self.frozen = True

    def thaw(self):
        self.frozen = False
        for viewer in self.viewers:
            viewer.skip_to_now()

    def show(self, clip):
        self.clip = clip
        for viewer in self.viewers:
            viewer.switch(clip)

    def remove(self):
        self.mounts.remove_factory(self.path)


class Camera:
    def __init__(self, options):
        self.h265, self.sound = options.h265, options.sound
        self.server = GstRtspServer.RTSPServer(address="127.0.0.1", service=str(options.port))
        if options.user:
            self.demand_login(options.user, options.password)
        self.setups = 0
        self.server.connect("client-connected", self.meet)
        self.mounts = {}
        # Removed ones may still have viewers.
        self.served = []
        for mount in options.mounts:
            self.add(*mount.split("=", 1))
        GLib.timeout_add(TICK_MS, self.tick)

    def demand_login(self, user, password):
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth = GstRtspServer.RTSPAuth()
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        self.server.set_auth(auth)

    def meet(self, _server, client):
        client.connect("setup-request", self.count_setup)

    def count_setup(self, _client, _context):
        self.setups += 1

    def tick(self):
        for mount in self.served:
            mount.tick()
        return GLib.SOURCE_CONTINUE

    def add(self, name, path):
        self.mounts[name] = Mount(self.server, name, load(path, self.h265), self.sound)
        self.served.append(self.mounts[name])

    def clients(self):
        return self.server.client_filter(lambda _server, _client: GstRtspServer.RTSPFilterResult.REF)

    def obey(self, line):
        """Answers a command."""
        match line.split():
            case ["freeze", name]:
                self.mounts[name].freeze()
            case ["thaw", name]:
                self.mounts[name].thaw()
            case ["clip", name, path]:
                self.mounts[name].show(load(path, self.h265))
            case ["remove", name]:
                self.mounts.pop(name).remove()
            case ["add", name, path]:
                self.add(name, path)
            case ["kick"]:
                for client in self.clients():
                    client.close()
            case ["setups"]:
                return "ok %d" % self.setups
            case _:
                return "error: unknown command"
        return "ok"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    parser.add_argument("--h265", action="store_true")
    parser.add_argument("--sound", action="store_true")
    parser.add_argument("mounts", nargs="+")
    options = parser.parse_args()
    Gst.init(None)
    loop = GLib.MainLoop()
    try:
        camera = Camera(options)
    except (ValueError, GLib.Error) as error:
        sys.exit("error: %s" % error)
    if camera.server.attach(None) == 0:
        sys.exit("error: cannot listen on port %d" % options.port)
    print("port", camera.server.get_bound_port(), flush=True)

    def command(_channel, _condition):
        line = sys.stdin.readline()
        if not line:
            loop.quit()
            return GLib.SOURCE_REMOVE
        try:
            print(camera.obey(line), flush=True)
        except (KeyError, ValueError, GLib.Error) as error:
            print("error: %s" % error, flush=True)
        return GLib.SOURCE_CONTINUE

    GLib.io_add_watch(0, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, command)
    loop.run()


if __name__ == "__main__":
    main()
