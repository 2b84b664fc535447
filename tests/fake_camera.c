/* A V4L2 camera for tests on machines without one: preloaded, it answers the system calls on the path $FAKE_CAMERA.
 *
 * What is real then is everything above the kernel: OpenCV's V4L2 backend, its buffers, its poll, its conversion.
 * What is not is the driver. It gives YUYV at 50 frames a second up to 1280x720: the left half is red, and the right
 * half gets lighter by one level a frame.
 *
 * FAKE_CAMERA_FREEZE, FAKE_CAMERA_UNPLUG: after how many frames that happens.
 * FAKE_CAMERA_BUSY, FAKE_CAMERA_METADATA, FAKE_CAMERA_FORBIDDEN: another program streams; it is no camera but its
 * node for metadata; the user may not open it.
 * FAKE_CAMERA_JPEG: a file that every frame is, as MJPG; of every six, one is only zeros and one lacks its second half.
 * FAKE_CAMERA_STUCK: seconds for which setting the format does not return.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 1024, BUFFERS = 8 };
static char ours[FDS];
static int owner = -1, queued[BUFFERS], buffers;
static unsigned width = 640, height = 480, sequence;
static uint8_t *memory[BUFFERS];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long setting(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : -1;
}

static int unplugged(void) {
    long frames = setting("FAKE_CAMERA_UNPLUG");
    return frames >= 0 && sequence >= (unsigned long)frames;
}

static int fail(int error) {
    errno = error;
    return -1;
}

static int is_ours(int fd) { return fd >= 0 && fd < FDS && ours[fd]; }

static int open_camera(void) {
    if (unplugged()) return fail(ENOENT);
    if (getenv("FAKE_CAMERA_FORBIDDEN")) return fail(EACCES);
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (is_ours(fd) || fd >= FDS) abort();
    ours[fd] = 1;
    return fd;
}

#define OPEN(name)                                                                   \
    int name(const char *path, int flags, ...) {                                     \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = va_arg(rest, mode_t);                                          \
        va_end(rest);                                                                \
        const char *camera = getenv("FAKE_CAMERA");                                  \
        return camera && !strcmp(path, camera) ? open_camera() : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (is_ours(fd)) ours[fd] = 0;
    if (fd == owner) owner = -1;
    return REAL(close)(fd);
}

static void *map(size_t length, off_t offset) {
    unsigned index = offset / 0x10000000;
    if (index >= BUFFERS) return MAP_FAILED;
    memory[index] = REAL(mmap)(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory[index];
}

void *mmap(void *place, size_t length, int protection, int flags, int fd, off_t offset) {
    return is_ours(fd) ? map(length, offset) : REAL(mmap)(place, length, protection, flags, fd, offset);
}

void *mmap64(void *place, size_t length, int protection, int flags, int fd, off64_t offset) {
    return is_ours(fd) ? map(length, offset) : REAL(mmap64)(place, length, protection, flags, fd, offset);
}

int poll(struct pollfd *fds, nfds_t count, int timeout) {
    for (nfds_t i = 0; i < count; i++)
        if (is_ours(fds[i].fd) && unplugged()) return fds[i].revents = POLLERR | POLLHUP, 1;
    return REAL(poll)(fds, count, timeout);
}

static void arm(int fd, int on) {
    struct timespec period = {0, on ? 20000000 : 0};
    timerfd_settime(fd, 0, &(struct itimerspec){period, period}, NULL);
}

static void draw(uint8_t *pixels) {
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x += 2, pixels += 4) {
            uint8_t grey = 16 + sequence % 200;
            uint8_t pair[2][4] = {{81, 90, 81, 240}, {grey, 128, grey, 128}};
            memcpy(pixels, pair[x >= width / 2], 4);
        }
}

/* How many bytes it takes. */
static unsigned draw_jpeg(uint8_t *pixels) {
    int file = REAL(open)(getenv("FAKE_CAMERA_JPEG"), O_RDONLY);
    ssize_t length = read(file, pixels, width * height * 2);
    REAL(close)(file);
    if (length < 0) abort();
    if (sequence % 6 == 2) memset(pixels, 0, length);
    return sequence % 6 == 4 ? length / 2 : length;
}

static int dequeue(int fd, struct v4l2_buffer *buffer) {
    uint64_t ticks;
    struct timespec now;
    if (read(fd, &ticks, sizeof ticks) < 0) return fail(EAGAIN);
    for (buffer->index = 0; buffer->index < (unsigned)buffers && !queued[buffer->index]; buffer->index++) {}
    if (buffer->index == (unsigned)buffers) return fail(EAGAIN);
    queued[buffer->index] = 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    buffer->length = buffer->bytesused = width * height * 2;
    if (getenv("FAKE_CAMERA_JPEG"))
        buffer->bytesused = draw_jpeg(memory[buffer->index]);
    else
        draw(memory[buffer->index]);
    buffer->timestamp.tv_sec = now.tv_sec;
    buffer->timestamp.tv_usec = now.tv_nsec / 1000;
    buffer->sequence = sequence++;
    if (setting("FAKE_CAMERA_FREEZE") == (long)sequence) arm(fd, 0);
    return 0;
}

static int set_format(struct v4l2_pix_format *format) {
    if (setting("FAKE_CAMERA_STUCK") > 0) nanosleep(&(struct timespec){setting("FAKE_CAMERA_STUCK"), 0}, NULL);
    if (format->width && format->height) {
        width = format->width > 1280 ? 1280 : format->width & ~1u;
        height = format->height > 720 ? 720 : format->height;
    }
    format->width = width;
    format->height = height;
    format->pixelformat = getenv("FAKE_CAMERA_JPEG") ? V4L2_PIX_FMT_MJPEG : V4L2_PIX_FMT_YUYV;
    format->bytesperline = width * 2;
    format->sizeimage = width * height * 2;
    return 0;
}

static int answer(int fd, unsigned request, void *argument) {
    struct v4l2_buffer *buffer = argument;
    struct v4l2_capability *capability = argument;
    struct v4l2_requestbuffers *wanted = argument;
    struct v4l2_streamparm *parameters = argument;
    if (unplugged()) return fail(ENODEV);
    switch (request) {
    case VIDIOC_QUERYCAP:
        memset(capability, 0, sizeof *capability);
        strcpy((char *)capability->driver, "fake");
        strcpy((char *)capability->card, "Fake Camera");
        capability->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING | V4L2_CAP_DEVICE_CAPS;
        capability->device_caps = V4L2_CAP_STREAMING;
        capability->device_caps |=
            getenv("FAKE_CAMERA_METADATA") ? V4L2_CAP_META_CAPTURE : V4L2_CAP_VIDEO_CAPTURE;
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
        return set_format(&((struct v4l2_format *)argument)->fmt.pix);
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM:
        parameters->parm.capture.timeperframe = (struct v4l2_fract){1, 50};
        return 0;
    case VIDIOC_REQBUFS:
        if (getenv("FAKE_CAMERA_BUSY") || (owner >= 0 && owner != fd)) return fail(EBUSY);
        wanted->count = wanted->count > BUFFERS ? BUFFERS : wanted->count;
        buffers = wanted->count;
        memset(queued, 0, sizeof queued);
        owner = buffers ? fd : -1;
        return 0;
    case VIDIOC_QUERYBUF:
        buffer->length = width * height * 2;
        buffer->m.offset = buffer->index * 0x10000000;
        return 0;
    case VIDIOC_QBUF:
        queued[buffer->index] = 1;
        return 0;
    case VIDIOC_DQBUF:
        return dequeue(fd, buffer);
    case VIDIOC_STREAMON:
        if (setting("FAKE_CAMERA_FREEZE") != 0) arm(fd, 1);
        return 0;
    case VIDIOC_STREAMOFF:
        arm(fd, 0);
        return 0;
    default:
        return fail(ENOTTY);
    }
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return is_ours(fd) ? answer(fd, (unsigned)request, argument) : REAL(ioctl)(fd, request, argument);
}
