/*
 * virtio_pci.c - a virtio device as a PCI function: capabilities, registers, interrupts
 *
 * Spec: VIRTIO 1.2, 4.1.
 */
#include "dev/virtio/virtio_pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "dev/pci/pci_host.h"
#include "dev/pci/pci_msix.h"
#include "dev/virtio/virtio_state.h"

#define VENDOR 0x1af4
#define DEVICE_BASE 0x1040

#define BAR_MSIX 1
#define BAR_REGISTERS 4
#define REGISTERS_SIZE 0x4000
#define AREA_SHIFT 12
enum { AREA_COMMON, AREA_ISR, AREA_DEVICE, AREA_NOTIFY };
#define AREA_OFFSET(area) ((unsigned)(area) << AREA_SHIFT)
#define NOTIFY_MULTIPLIER 4

/* Vendor-specific capabilities (4.1.4). */
#define CAP_SIZE 16
#define CAP_LENGTH 2
#define CAP_TYPE 3
#define CAP_BAR 4
#define CAP_OFFSET 8
#define CAP_AREA_LENGTH 12
#define CAP_NOTIFY_MULTIPLIER 16
#define CAP_PCI_DATA 16
#define TYPE_COMMON 1
#define TYPE_NOTIFY 2
#define TYPE_ISR 3
#define TYPE_DEVICE 4
#define TYPE_PCI 5

/* Common configuration (4.1.4.3). */
enum {
    COMMON_DEVICE_FEATURE_SELECT = 0x00,
    COMMON_DEVICE_FEATURE = 0x04,
    COMMON_DRIVER_FEATURE_SELECT = 0x08,
    COMMON_DRIVER_FEATURE = 0x0c,
    COMMON_CONFIG_VECTOR = 0x10,
    COMMON_QUEUE_COUNT = 0x12,
    COMMON_STATUS = 0x14,
    COMMON_GENERATION = 0x15,
    COMMON_QUEUE_SELECT = 0x16,
    COMMON_QUEUE_SIZE = 0x18,
    COMMON_QUEUE_VECTOR = 0x1a,
    COMMON_QUEUE_ENABLE = 0x1c,
    COMMON_QUEUE_NOTIFY_OFF = 0x1e,
    COMMON_QUEUE_DESCRIPTORS = 0x20,
    COMMON_QUEUE_DRIVER = 0x28,
    COMMON_QUEUE_DEVICE = 0x30,
    COMMON_SIZE = 0x38,
};

#define NO_VECTOR 0xffff
#define ISR_QUEUE 1u
#define ISR_CONFIG 2u

_Static_assert(VIRTIO_QUEUES_MAX + 1 <= PCI_MSIX_VECTORS_MAX, "a vector for each, and one");

struct virtio_pci {
    struct pci_device pci;
    struct virtio_device *dev;
    struct pci_msix *msix;
    unsigned vector_count;
    unsigned pci_capability; /* TYPE_PCI */

    /* under the device's lock */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint16_t queue_vectors[VIRTIO_QUEUES_MAX];
    uint8_t isr;

    struct pci_bell bells[VIRTIO_QUEUES_MAX]; /* fixed */
};

/* ---- interrupts; under the device's lock ---- */

static void interrupt(struct virtio_pci *f, uint16_t vector, uint8_t isr)
{
    if (pci_msix_is_enabled(f->msix)) {
        if (vector != NO_VECTOR)
            pci_msix_notify(f->msix, vector);
        return;
    }
    f->isr |= isr;
    pci_host_set_intx(f->pci.host, &f->pci, true);
}

static void signal_queue(void *transport, unsigned index)
{
    struct virtio_pci *f = transport;

    interrupt(f, f->queue_vectors[index], ISR_QUEUE);
}

static void signal_config(void *transport)
{
    struct virtio_pci *f = transport;

    interrupt(f, f->config_vector, ISR_CONFIG);
}

static const struct virtio_transport_ops transport_ops = {signal_queue, signal_config};

/* ---- common configuration ---- */

static struct virtqueue *selected_queue(struct virtio_pci *f)
{
    return f->queue_select < f->dev->queue_count ? &f->dev->queues[f->queue_select] : NULL;
}

static void read_common(struct virtio_pci *f, uint8_t *image)
{
    struct virtio_device *dev = f->dev;
    const struct virtqueue *q = selected_queue(f);
    uint32_t select = f->device_feature_select;

    memset(image, 0, COMMON_SIZE);
    store_le32(image + COMMON_DEVICE_FEATURE_SELECT, select);
    if (select < 2)
        store_le32(image + COMMON_DEVICE_FEATURE, (uint32_t)(dev->offered >> (32 * select)));
    select = f->driver_feature_select;
    store_le32(image + COMMON_DRIVER_FEATURE_SELECT, select);
    if (select < 2)
        store_le32(image + COMMON_DRIVER_FEATURE, (uint32_t)(dev->features >> (32 * select)));
    store_le16(image + COMMON_CONFIG_VECTOR, f->config_vector);
    store_le16(image + COMMON_QUEUE_COUNT, (uint16_t)dev->queue_count);
    image[COMMON_STATUS] = virtio_get_status(dev);
    image[COMMON_GENERATION] = dev->config_generation;
    store_le16(image + COMMON_QUEUE_SELECT, f->queue_select);
    if (q == NULL)
        return; /* size 0: there is no such queue */
    store_le16(image + COMMON_QUEUE_SIZE, q->size);
    store_le16(image + COMMON_QUEUE_VECTOR, f->queue_vectors[f->queue_select]);
    store_le16(image + COMMON_QUEUE_ENABLE, q->is_enabled);
    store_le16(image + COMMON_QUEUE_NOTIFY_OFF, f->queue_select);
    store_le64(image + COMMON_QUEUE_DESCRIPTORS, q->descriptors);
    store_le64(image + COMMON_QUEUE_DRIVER, q->driver);
    store_le64(image + COMMON_QUEUE_DEVICE, q->device);
}

/* A vector that does not exist reads back as none, which tells the driver so (4.1.5.1.2). */
static uint16_t checked_vector(const struct virtio_pci *f, uint32_t value)
{
    return value < f->vector_count ? (uint16_t)value : NO_VECTOR;
}

static void set_half(uint64_t *address, bool is_high, uint32_t value)
{
    unsigned shift = is_high ? 32 : 0;

    *address = (*address & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
}

static void write_queue(struct virtio_pci *f, struct virtqueue *q, unsigned offset, uint32_t value)
{
    if (offset == COMMON_QUEUE_VECTOR) {
        f->queue_vectors[f->queue_select] = checked_vector(f, value);
        return;
    }
    if (q->is_enabled) /* the driver must not (4.1.4.3.2) */
        return;
    switch (offset) {
    case COMMON_QUEUE_SIZE:
        if (value != 0 && value <= f->dev->queue_size)
            q->size = (uint16_t)value;
        break;
    case COMMON_QUEUE_ENABLE:
        if (value == 1)
            virtio_enable_queue(f->dev, f->queue_select);
        break;
    case COMMON_QUEUE_DESCRIPTORS:
    case COMMON_QUEUE_DESCRIPTORS + 4:
        set_half(&q->descriptors, offset & 4, value);
        break;
    case COMMON_QUEUE_DRIVER:
    case COMMON_QUEUE_DRIVER + 4:
        set_half(&q->driver, offset & 4, value);
        break;
    case COMMON_QUEUE_DEVICE:
    case COMMON_QUEUE_DEVICE + 4:
        set_half(&q->device, offset & 4, value);
        break;
    default:
        break;
    }
}

static void forget_driver(struct virtio_pci *f)
{
    f->config_vector = NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        f->queue_vectors[i] = NO_VECTOR;
    f->queue_select = 0;
    f->device_feature_select = f->driver_feature_select = 0;
    f->isr = 0;
    if (f->pci.host != NULL)
        pci_host_set_intx(f->pci.host, &f->pci, false);
}

/* Registers are written whole, 64-bit ones by halves (4.1.3.1). */
static void write_common(struct virtio_pci *f, unsigned offset, uint32_t value, unsigned size)
{
    struct virtqueue *q = selected_queue(f);

    if (size == 1) {
        if (offset != COMMON_STATUS)
            return;
        virtio_set_status(f->dev, (uint8_t)value);
        if (value == 0)
            forget_driver(f);
    } else if (size == 2 && offset == COMMON_CONFIG_VECTOR) {
        f->config_vector = checked_vector(f, value);
    } else if (size == 2 && offset == COMMON_QUEUE_SELECT) {
        f->queue_select = (uint16_t)value;
    } else if (size == 4 && offset == COMMON_DEVICE_FEATURE_SELECT) {
        f->device_feature_select = value;
    } else if (size == 4 && offset == COMMON_DRIVER_FEATURE_SELECT) {
        f->driver_feature_select = value;
    } else if (size == 4 && offset == COMMON_DRIVER_FEATURE) {
        virtio_set_driver_features(f->dev, f->driver_feature_select, value);
    } else if (q != NULL && size == (offset < COMMON_QUEUE_DESCRIPTORS ? 2 : 4)) {
        write_queue(f, q, offset, value);
    }
}

/* ---- BAR 4; under the device's lock ---- */

static uint64_t read_isr(struct virtio_pci *f)
{
    uint8_t isr = f->isr;

    f->isr = 0;
    pci_host_set_intx(f->pci.host, &f->pci, false);
    return isr;
}

static uint64_t registers_read(void *ctx, uint64_t offset, unsigned size)
{
    struct virtio_pci *f = ctx;
    unsigned at = offset & (BIT(AREA_SHIFT) - 1);
    uint8_t image[COMMON_SIZE];
    uint64_t value = 0;

    switch (offset >> AREA_SHIFT) {
    case AREA_COMMON:
        if (!range_fits(at, size, COMMON_SIZE))
            return 0;
        read_common(f, image);
        memcpy(&value, image + at, size);
        return value;
    case AREA_ISR:
        return at == 0 ? read_isr(f) : 0;
    case AREA_DEVICE:
        return virtio_config_read(f->dev, at, size);
    default:
        return 0;
    }
}

static void registers_write(void *ctx, uint64_t offset, uint64_t value, unsigned size)
{
    struct virtio_pci *f = ctx;
    unsigned at = offset & (BIT(AREA_SHIFT) - 1);

    switch (offset >> AREA_SHIFT) {
    case AREA_COMMON:
        write_common(f, at, (uint32_t)value, size);
        break;
    case AREA_DEVICE:
        virtio_config_write(f->dev, at, value, size);
        break;
    case AREA_NOTIFY:
        if (at % NOTIFY_MULTIPLIER == 0)
            virtio_notify(f->dev, at / NOTIFY_MULTIPLIER);
        break;
    default:
        break;
    }
}

static const struct space_ops registers_ops = {
    .read = registers_read, .write = registers_write, .min_size = 1, .max_size = 4};

/* ---- configuration space ---- */

/*
 * The window through which software that cannot map BARs reaches them (4.1.4.9): the place that
 * the capability names, or NULL.
 */
static const struct space_window *pci_window(struct virtio_pci *f, uint32_t *offset, unsigned *size)
{
    const uint8_t *cap = f->pci.config + f->pci_capability;
    uint8_t bar = cap[CAP_BAR];

    *offset = load_le32(cap + CAP_OFFSET);
    *size = load_le32(cap + CAP_AREA_LENGTH);
    if ((*size != 1 && *size != 2 && *size != 4) || *offset % *size != 0)
        return NULL;
    if (bar >= PCI_BAR_COUNT || !range_fits(*offset, *size, f->pci.bars[bar].size))
        return NULL;
    return &f->pci.bars[bar].window;
}

/* A driver that takes bus mastering away means to have its memory for itself. */
static void follow_master(struct virtio_pci *f)
{
    bool is_held = !pci_device_is_master(&f->pci);

    virtio_lock(f->dev);
    if (is_held != f->dev->is_held)
        virtio_hold(f->dev, is_held);
    virtio_unlock(f->dev);
}

static bool is_pci_data(const struct virtio_pci *f, unsigned offset, unsigned size)
{
    return ranges_overlap(offset, size, f->pci_capability + CAP_PCI_DATA, 4);
}

static void config_reading(struct pci_device *pci, unsigned offset, unsigned size)
{
    struct virtio_pci *f = CONTAINER_OF(pci, struct virtio_pci, pci);
    const struct space_window *window;
    uint32_t at;
    unsigned n;

    if (is_pci_data(f, offset, size) && (window = pci_window(f, &at, &n)) != NULL)
        store_le32(pci->config + f->pci_capability + CAP_PCI_DATA,
                   (uint32_t)space_window_load(window, at, n));
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned size)
{
    struct virtio_pci *f = CONTAINER_OF(pci, struct virtio_pci, pci);
    const struct space_window *window;
    uint32_t at;
    unsigned n;

    follow_master(f);
    if (is_pci_data(f, offset, size) && (window = pci_window(f, &at, &n)) != NULL)
        space_window_store(
            window, at, load_le32(pci->config + f->pci_capability + CAP_PCI_DATA) & mask_bytes(n),
            n);
}

static void config_restored(struct pci_device *pci)
{
    follow_master(CONTAINER_OF(pci, struct virtio_pci, pci));
}

static const struct pci_device_ops pci_ops = {.config_reading = config_reading,
                                              .config_written = config_written,
                                              .config_restored = config_restored};

static unsigned add_capability(struct pci_device *pci, unsigned type, unsigned area,
                               uint32_t length, unsigned size)
{
    unsigned at = pci_device_add_capability(pci, PCI_CAP_VENDOR, size);
    uint8_t *cap = pci->config + at;

    cap[CAP_LENGTH] = (uint8_t)size;
    cap[CAP_TYPE] = (uint8_t)type;
    cap[CAP_BAR] = BAR_REGISTERS;
    store_le32(cap + CAP_OFFSET, AREA_OFFSET(area));
    store_le32(cap + CAP_AREA_LENGTH, length);
    return at;
}

static void add_capabilities(struct virtio_pci *f)
{
    struct pci_device *pci = &f->pci;
    unsigned at;

    add_capability(pci, TYPE_COMMON, AREA_COMMON, COMMON_SIZE, CAP_SIZE);
    add_capability(pci, TYPE_ISR, AREA_ISR, 1, CAP_SIZE);
    if (f->dev->config_size != 0)
        add_capability(pci, TYPE_DEVICE, AREA_DEVICE, f->dev->config_size, CAP_SIZE);
    at = add_capability(pci, TYPE_NOTIFY, AREA_NOTIFY, f->dev->queue_count * NOTIFY_MULTIPLIER,
                        CAP_SIZE + 4);
    store_le32(pci->config + at + CAP_NOTIFY_MULTIPLIER, NOTIFY_MULTIPLIER);
    at = add_capability(pci, TYPE_PCI, 0, 0, CAP_SIZE + 4);
    pci->config[at + CAP_BAR] = 0;
    pci->write_mask[at + CAP_BAR] = 0xff;
    memset(pci->write_mask + at + CAP_OFFSET, 0xff, 12); /* offset, length, data */
    f->pci_capability = at;
    pci_device_add_power_management(pci);
}

/* ---- set-up ---- */

static void add_bells(struct virtio_pci *f)
{
    struct virtio_device *dev = f->dev;

    for (unsigned i = 0; i < dev->queue_count && dev->ops->bell != NULL; i++) {
        int fd = dev->ops->bell(dev, i);
        if (fd >= 0)
            f->bells[f->pci.bell_count++] =
                (struct pci_bell){.bar = BAR_REGISTERS,
                                  .offset = AREA_OFFSET(AREA_NOTIFY) + i * NOTIFY_MULTIPLIER,
                                  .fd = fd};
    }
    f->pci.bells = f->bells;
}

int virtio_pci_create(struct virtio_device *dev, uint16_t class_device, struct virtio_pci **out,
                      struct err *e)
{
    struct virtio_pci *f = calloc(1, sizeof(*f));
    struct pci_ids ids = {
        .vendor = VENDOR,
        .device = (uint16_t)(DEVICE_BASE + dev->id),
        .class_device = class_device,
        .revision = 1,
        .subsystem_vendor = VENDOR,
        .subsystem = (uint16_t)(DEVICE_BASE + dev->id),
    };
    struct space_window window = {
        .ops = &registers_ops, .ctx = f, .lock = &dev->lock, .holds_wakes = true};

    if (f == NULL)
        return err_set(e, ENOMEM, "make the PCI function of %s", dev->name);
    f->dev = dev;
    f->vector_count = dev->queue_count + 1;
    pci_device_init(&f->pci, dev->name, &pci_ops, &ids);
    f->pci.config[PCI_INTERRUPT_PIN] = 1;
    pci_device_set_bar(&f->pci, BAR_REGISTERS, PCI_BAR_MEM64, REGISTERS_SIZE, &window);
    int rc = pci_msix_create(&f->pci, BAR_MSIX, f->vector_count, &f->msix, e);
    if (rc != 0) {
        free(f);
        return rc;
    }
    add_capabilities(f);
    add_bells(f);
    forget_driver(f);
    dev->is_held = true; /* no bus master yet */
    dev->transport_ops = &transport_ops;
    dev->transport = f;
    *out = f;
    return 0;
}

void virtio_pci_destroy(struct virtio_pci *f)
{
    if (f == NULL)
        return;
    pci_msix_destroy(f->msix);
    free(f);
}

struct virtio_device *virtio_pci_device(const struct virtio_pci *f)
{
    return f->dev;
}

int virtio_pci_attach(struct virtio_pci *f, struct pci_host *host, unsigned slot, struct err *e)
{
    return pci_host_add(host, &f->pci, slot, 0, e);
}

void virtio_pci_reset(struct virtio_pci *f)
{
    virtio_lock(f->dev);
    virtio_set_status(f->dev, 0);
    forget_driver(f);
    virtio_hold(f->dev, true);
    virtio_unlock(f->dev);
    pci_host_reset_device(f->pci.host, &f->pci);
}

/* ---- state ---- */

void virtio_pci_detach(struct virtio_pci *f)
{
    pci_host_remove(f->pci.host, &f->pci);
}

int virtio_pci_get_state(struct virtio_pci *f, struct virtio_pci_state *out, struct err *e)
{
    int rc = virtio_get_state(f->dev, &out->device, e);

    if (rc != 0)
        return rc;
    pthread_mutex_lock(&f->dev->lock);
    out->device_feature_select = f->device_feature_select;
    out->driver_feature_select = f->driver_feature_select;
    out->queue_select = f->queue_select;
    out->config_vector = f->config_vector;
    memcpy(out->queue_vectors, f->queue_vectors, sizeof(out->queue_vectors));
    out->isr = f->isr;
    pthread_mutex_unlock(&f->dev->lock);
    pci_host_get_device_state(f->pci.host, &f->pci, &out->function);
    return 0;
}

static int check_vector(const struct virtio_pci *f, uint16_t vector, const char *field,
                        unsigned index, struct err *e)
{
    if (vector == NO_VECTOR || vector < f->vector_count)
        return 0;
    return err_set(e, 0, "%s %u is %u, and the function has %u", field, index, vector,
                   f->vector_count);
}

static int check_registers(const struct virtio_pci *f, const struct virtio_pci_state *state,
                           struct err *e)
{
    int rc = check_vector(f, state->config_vector, "the configuration's vector", 0, e);

    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX && rc == 0; i++)
        rc = check_vector(f, state->queue_vectors[i], "the vector of queue", i, e);
    if (rc == 0 && (state->isr & ~(ISR_QUEUE | ISR_CONFIG)))
        rc = err_set(e, 0, "isr is 0x%02x, and not all of these bits exist", state->isr);
    if (rc == 0 && (state->isr != 0) != state->function.is_intx_asserted)
        rc = err_set(e, 0, "isr is 0x%02x, and function.is_intx_asserted is %u", state->isr,
                     state->function.is_intx_asserted);
    return rc != 0 ? err_prefix(e, "put back the state of %s", f->dev->name) : 0;
}

int virtio_pci_set_state(struct virtio_pci *f, const struct virtio_pci_state *state, struct err *e)
{
    int rc = check_registers(f, state, e);

    if (rc == 0)
        rc = pci_host_check_device_state(f->pci.host, &f->pci, &state->function, e);
    if (rc == 0)
        rc = virtio_set_state(f->dev, &state->device, e);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&f->dev->lock);
    f->device_feature_select = state->device_feature_select;
    f->driver_feature_select = state->driver_feature_select;
    f->queue_select = state->queue_select;
    f->config_vector = state->config_vector;
    memcpy(f->queue_vectors, state->queue_vectors, sizeof(f->queue_vectors));
    f->isr = state->isr;
    pthread_mutex_unlock(&f->dev->lock);
    /* it was checked above, and no CPU runs that could have changed what it was checked against */
    return pci_host_set_device_state(f->pci.host, &f->pci, &state->function, e);
}
