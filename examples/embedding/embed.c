/* Embedding yolodetect in C: the graph element by element, the metas read in a pad probe.
 *
 *   cc embed.c -o embed $(pkg-config --cflags --libs gstreamer-1.0 gstreamer-video-1.0)
 *   ./embed MODEL FRAMES VIDEO...
 *
 * Detects on all videos at once, through one engine, and prints a line for each frame:
 *
 *   stream0 12 inferred #31 person(0) 0.91 [162,1,223,267] #32 car(2) 0.84 [0,109,123,159]
 *
 * These are the stream, the frame's number and status, then id, label, class, confidence and box of each
 * detection. FRAMES ends each video after so many; 0 plays all. main.rs and embed.py beside this file do the
 * same.
 */

#include <gst/gst.h>
#include <gst/video/video.h>
#include <stdio.h>

#define WRONG_USAGE 2

/* --- what is on the buffers ------------------------------------------------------------------ */

/* README: begin probe */
static const guint8 *bytes(const GstStructure *structure, const gchar *field)
{
    return g_bytes_get_data(g_value_get_boxed(gst_structure_get_value(structure, field)), NULL);
}

static GstPadProbeReturn print_frame(GstPad *pad G_GNUC_UNUSED, GstPadProbeInfo *info,
    gpointer user_data G_GNUC_UNUSED)
{
    GstBuffer *buffer = GST_PAD_PROBE_INFO_BUFFER(info);
    GstCustomMeta *meta = gst_buffer_get_custom_meta(buffer, "YoloDetectFrameMeta");
    if (meta == NULL)
        return GST_PAD_PROBE_OK;

    /* All of this is borrowed from the buffer: nothing to free, nothing to keep. */
    GstStructure *frame = gst_custom_meta_get_structure(meta);
    const guint8 *classes = bytes(frame, "class-ids"), *confidences = bytes(frame, "confidences");
    guint64 number = 0;
    guint first_id = 0, count = 0;
    gst_structure_get_uint64(frame, "frame", &number);
    gst_structure_get_uint(frame, "first-id", &first_id);
    gst_structure_get_uint(frame, "count", &count);

    GString *line = g_string_new(gst_structure_get_string(frame, "element"));
    const gchar *status = gst_structure_get_string(frame, "status");
    g_string_append_printf(line, " %" G_GUINT64_FORMAT " %s", number, status);
    for (guint i = 0; i < count; i++) {
        guint id = first_id + i;
        GstVideoRegionOfInterestMeta *box = gst_buffer_get_video_region_of_interest_meta_id(buffer, id);
        if (box == NULL) /* an element that cuts the picture dropped it */
            continue;
        g_string_append_printf(line, " #%u %s(%u) %.2f [%u,%u,%u,%u]", id, g_quark_to_string(box->roi_type),
            GST_READ_UINT16_LE(classes + 2 * i), GST_READ_FLOAT_LE(confidences + 4 * i),
            box->x, box->y, box->w, box->h);
    }
    puts(line->str);
    g_string_free(line, TRUE);
    return GST_PAD_PROBE_OK;
}
/* README: end probe */

/* --- the graph ------------------------------------------------------------------------------- */

/* Returns the new element, which belongs to the pipeline; NULL where there is none of that kind. */
static GstElement *add(GstElement *pipeline, const gchar *kind, const gchar *name)
{
    GstElement *element = gst_element_factory_make(kind, name);
    if (element == NULL) {
        fprintf(stderr, "error: there is no element %s; is its plugin's folder in GST_PLUGIN_PATH?\n", kind);
        return NULL;
    }
    gst_bin_add(GST_BIN(pipeline), element);
    return element;
}

/* A decoder has its pads only when it has seen the file. Sound does not fit into the detector, and a second
 * picture finds it taken. Runs in a streaming thread. */
static void link_pad(GstElement *decoder G_GNUC_UNUSED, GstPad *pad, gpointer detector)
{
    GstPad *sink = gst_element_get_static_pad(detector, "sink");
    if (!gst_pad_is_linked(sink))
        gst_pad_link(pad, sink);
    gst_object_unref(sink);
}

static gboolean add_stream(GstElement *pipeline, const gchar *name, const gchar *model, gint frames,
    const gchar *video)
{
    GstElement *source = add(pipeline, "filesrc", NULL);
    GstElement *decoder = add(pipeline, "decodebin", NULL);
    GstElement *detector = add(pipeline, "yolodetect", name);
    GstElement *sink = add(pipeline, "fakesink", NULL);
    /* What was added before goes with the pipeline. */
    if (source == NULL || decoder == NULL || detector == NULL || sink == NULL)
        return FALSE;

    g_object_set(source, "location", video, NULL);
    /* Regions alone: every GStreamer has them, and their ids are the detections'. */
    gst_util_set_object_arg(G_OBJECT(detector), "analytics-meta", "off");
    gst_util_set_object_arg(G_OBJECT(detector), "roi-meta", "on");
    g_object_set(detector, "model-file", model, "stats-interval", (guint64)GST_SECOND, NULL);
    g_object_set(sink, "num-buffers", frames > 0 ? frames : -1, NULL);

    g_signal_connect(decoder, "pad-added", G_CALLBACK(link_pad), detector);
    GstPad *pad = gst_element_get_static_pad(detector, "src");
    gst_pad_add_probe(pad, GST_PAD_PROBE_TYPE_BUFFER, print_frame, NULL, NULL);
    gst_object_unref(pad);
    return gst_element_link(source, decoder) && gst_element_link(detector, sink);
}

/* --- the messages ---------------------------------------------------------------------------- */

static void report_problem(GstMessage *message)
{
    gboolean is_error = GST_MESSAGE_TYPE(message) == GST_MESSAGE_ERROR;
    GError *error = NULL;
    gchar *debug = NULL;
    if (is_error)
        gst_message_parse_error(message, &error, &debug);
    else
        gst_message_parse_warning(message, &error, &debug);
    fprintf(stderr, "%s: %s: %s\n%s\n", is_error ? "error" : "warning", GST_MESSAGE_SRC_NAME(message),
        error->message, debug != NULL ? debug : "");
    g_error_free(error);
    g_free(debug);
}

static void report_stats(const gchar *name, const GstStructure *stats)
{
    const GValue *engine = gst_structure_get_value(stats, "engine");
    guint64 inferred = 0, out = 0;
    guint streams = 0;
    gst_structure_get_uint64(stats, "inferred", &inferred);
    gst_structure_get_uint64(stats, "frames-out", &out);
    if (engine != NULL)
        gst_structure_get_uint(gst_value_get_structure(engine), "streams", &streams);
    fprintf(stderr, "stats: %s: %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " frames inferred, "
        "%u streams on the engine\n", name, inferred, out, streams);
}

static void report_element(GstMessage *message)
{
    const GstStructure *fields = gst_message_get_structure(message);
    if (gst_structure_has_name(fields, "yolodetect-stats")) {
        report_stats(GST_MESSAGE_SRC_NAME(message), fields);
    } else if (gst_structure_has_name(fields, "yolodetect-batch-reduced")) {
        guint batch = 0, limit = 0;
        gst_structure_get_uint(fields, "batch", &batch);
        gst_structure_get_uint(fields, "limit", &limit);
        fprintf(stderr, "batch reduced: %s had no memory for %u frames at once, takes %u from now on\n",
            gst_structure_get_string(fields, "model"), batch, limit);
    } else if (gst_structure_has_name(fields, "yolodetect-memory-pressure")) {
        const GValue *value = gst_structure_get_value(fields, "actions");
        const GstStructure *actions = value ? gst_value_get_structure(value) : NULL;
        guint64 freed = 0;
        gst_structure_get_uint64(fields, "freed-bytes", &freed);
        fprintf(stderr, "memory pressure: %s, by the %s; %" G_GUINT64_FORMAT " bytes given back:",
            gst_structure_get_string(fields, "level"), gst_structure_get_string(fields, "source"), freed);
        for (gint i = 0; actions && i < gst_structure_n_fields(actions); i++)
            fprintf(stderr, " %s", gst_structure_nth_field_name(actions, i));
        fputc('\n', stderr);
    }
}

/* Plays to the end, or to the first error; FALSE is an error. */
static gboolean play(GstElement *pipeline)
{
    GstBus *bus = gst_element_get_bus(pipeline);
    /* Waits while the model loads: an application with windows does this in a thread of its own. */
    gboolean well = gst_element_set_state(pipeline, GST_STATE_PLAYING) != GST_STATE_CHANGE_FAILURE;
    gboolean ended = FALSE;
    GstMessage *message;
    /* Why it did not start is on the bus already. */
    while (!ended && (message = gst_bus_timed_pop(bus, well ? GST_CLOCK_TIME_NONE : 0)) != NULL) {
        switch (GST_MESSAGE_TYPE(message)) {
        case GST_MESSAGE_EOS:
            ended = TRUE;
            break;
        case GST_MESSAGE_ERROR:
            report_problem(message);
            well = FALSE;
            ended = TRUE;
            break;
        case GST_MESSAGE_WARNING:
            report_problem(message);
            break;
        case GST_MESSAGE_ELEMENT:
            report_element(message);
            break;
        case GST_MESSAGE_LATENCY:
            gst_bin_recalculate_latency(GST_BIN(pipeline));
            break;
        default:
            break;
        }
        gst_message_unref(message);
    }
    if (!well && !ended)
        fprintf(stderr, "error: the pipeline does not start\n");
    gst_object_unref(bus);
    return well;
}

int main(int argc, char **argv)
{
    guint64 frames = 0;
    gst_init(&argc, &argv);
    if (argc < 4 || !g_ascii_string_to_unsigned(argv[2], 10, 0, G_MAXINT, &frames, NULL)) {
        fprintf(stderr, "usage: %s MODEL FRAMES VIDEO...\n", argv[0]);
        return WRONG_USAGE;
    }
    GstElement *pipeline = gst_pipeline_new(NULL);
    gboolean well = TRUE;
    for (int i = 3; well && i < argc; i++) {
        gchar *name = g_strdup_printf("stream%d", i - 3);
        well = add_stream(pipeline, name, argv[1], (gint)frames, argv[i]);
        g_free(name);
    }
    well = well && play(pipeline);
    /* Ends all threads, and must come before the last reference goes. */
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(pipeline);
    /* For leak checkers: GST_TRACERS=leaks reports here. */
    gst_deinit();
    return well ? 0 : 1;
}
