/*
 * share_creds.c - as whom the FUSE server acts
 *
 * A process of root's keeps ids: what the guest's user N makes belongs to N, because the thread
 * that makes it has N as its file-system user meanwhile. The guest's kernel has judged already
 * whether N may, with groups that only it knows, so the thread keeps the right to pass permission
 * checks (CAP_DAC_OVERRIDE). Any other process acts as its own user always, and the host's kernel
 * says what that user may.
 *
 * Capabilities and file-system ids are each thread's own (capabilities(7), setfsuid(2)); glibc has
 * no function for the first.
 */
#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/share/share_impl.h"

struct cap_sets {
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

static int cap_get(struct cap_sets *sets)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

    return syscall(SYS_capget, &header, sets->data) == 0 ? 0 : -errno;
}

/* Make one capability effective, or not. */
static int cap_set_effective(unsigned cap, bool is_on)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct cap_sets sets;
    uint32_t bit = CAP_TO_MASK(cap);
    int rc = cap_get(&sets);

    if (rc != 0)
        return rc;
    struct __user_cap_data_struct *set = &sets.data[CAP_TO_INDEX(cap)];
    set->effective = is_on ? set->effective | (set->permitted & bit) : set->effective & ~bit;
    return syscall(SYS_capset, &header, sets.data) == 0 ? 0 : -errno;
}

void share_creds_init(struct share_creds *creds)
{
    const uint32_t needed = CAP_TO_MASK(CAP_CHOWN) | CAP_TO_MASK(CAP_DAC_OVERRIDE) |
                            CAP_TO_MASK(CAP_FOWNER) | CAP_TO_MASK(CAP_FSETID) |
                            CAP_TO_MASK(CAP_SETUID) | CAP_TO_MASK(CAP_SETGID);
    struct cap_sets sets;

    creds->keeps_ids =
        geteuid() == 0 && cap_get(&sets) == 0 && (sets.data[0].effective & needed) == needed;
}

int share_creds_thread(struct err *e)
{
    /* the umask is a part of what threads share under CLONE_FS */
    if (unshare(CLONE_FS) != 0)
        return err_set(e, errno, "give a thread of a shared folder an umask of its own");
    umask(0);
    return 0;
}

static bool is_root(const struct share_call *c)
{
    return c->header->uid == 0 && c->header->gid == 0;
}

int share_creds_enter(const struct share_call *c, uint32_t mask)
{
    uid_t uid = c->header->uid;
    gid_t gid = c->header->gid;

    umask(mask & 0777);
    if (!c->share->creds.keeps_ids || is_root(c))
        return 0;
    setfsgid(gid);
    setfsuid(uid);
    /* the calls do not fail, they do nothing: ids that the user namespace has not */
    if ((gid_t)setfsgid((gid_t)-1) != gid || (uid_t)setfsuid((uid_t)-1) != uid) {
        share_creds_leave(c);
        return -EOVERFLOW;
    }
    /* a user other than 0 loses what is for files */
    int rc = uid == 0 ? 0 : cap_set_effective(CAP_DAC_OVERRIDE, true);
    if (rc != 0)
        share_creds_leave(c);
    return rc;
}

void share_creds_leave(const struct share_call *c)
{
    umask(0);
    if (!c->share->creds.keeps_ids || is_root(c))
        return;
    /* back to user 0: the effective capabilities come back with it */
    setfsuid(0);
    setfsgid(0);
}

int share_creds_drop_fsetid(const struct share_call *c)
{
    return c->share->creds.keeps_ids ? cap_set_effective(CAP_FSETID, false) : 0;
}

void share_creds_regain_fsetid(const struct share_call *c)
{
    if (c->share->creds.keeps_ids)
        cap_set_effective(CAP_FSETID, true);
}
