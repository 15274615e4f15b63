/*
 * share_tables.c - what a guest has looked up, and what it holds open
 *
 * Invariants: an inode is in both of its hash tables from when it is made until its last
 * reference goes; the look-ups that the guest has not forgotten are one reference, an open file is
 * another. While an inode is in the table its descriptor pins the file, so device and inode number
 * stand for no other. Numbers only grow.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/share/share_impl.h"
#include "base/bits.h"

static unsigned bucket(uint64_t value)
{
    return (unsigned)((value * UINT64_C(0x9e3779b97f4a7c15)) >> 50) % SHARE_BUCKETS;
}

static unsigned key_bucket(const struct share_inode_key *key)
{
    return bucket(key->ino ^ (key->dev << 40) ^ (key->mount << 20));
}

static unsigned inode_key_bucket(const struct share_inode *inode)
{
    struct share_inode_key key = {.dev = inode->dev, .ino = inode->ino, .mount = inode->mount};

    return key_bucket(&key);
}

/* ---- inodes; under the lock ---- */

static void inode_remove(struct share_tables *t, struct share_inode *inode)
{
    struct share_inode **p = &t->by_id[bucket(inode->id)];

    while (*p != inode)
        p = &(*p)->next_by_id;
    *p = inode->next_by_id;
    for (p = &t->by_key[inode_key_bucket(inode)]; *p != inode; p = &(*p)->next_by_key)
        ;
    *p = inode->next_by_key;
    t->inode_count--;
}

/* Give `count` references back; returns the inode if it is nobody's now, for free_inode. */
static struct share_inode *inode_unref(struct share_tables *t, struct share_inode *inode,
                                       unsigned count)
{
    inode->refs -= count;
    if (inode->refs != 0)
        return NULL;
    inode_remove(t, inode);
    return inode;
}

/* Without the lock: closing can take a while. */
static void free_inode(struct share_inode *inode)
{
    if (inode == NULL)
        return;
    close(inode->fd);
    free(inode);
}

static struct share_inode *inode_find(const struct share_tables *t, uint64_t id)
{
    struct share_inode *inode = t->by_id[bucket(id)];

    while (inode != NULL && inode->id != id)
        inode = inode->next_by_id;
    /* one that is only in use is forgotten already */
    return inode != NULL && inode->lookups != 0 ? inode : NULL;
}

static struct share_inode *inode_find_key(const struct share_tables *t,
                                          const struct share_inode_key *key)
{
    struct share_inode *inode = t->by_key[key_bucket(key)];

    while (inode != NULL &&
           (inode->ino != key->ino || inode->dev != key->dev || inode->mount != key->mount))
        inode = inode->next_by_key;
    return inode;
}

static struct share_inode *inode_add(struct share_tables *t, const struct share_inode_key *key,
                                     uint64_t id)
{
    struct share_inode *inode = calloc(1, sizeof(*inode));

    if (inode == NULL)
        return NULL;
    *inode = (struct share_inode){.id = id,
                                  .fd = key->fd,
                                  .type = key->type,
                                  .dev = key->dev,
                                  .ino = key->ino,
                                  .mount = key->mount};
    struct share_inode **first = &t->by_id[bucket(id)];
    inode->next_by_id = *first;
    *first = inode;
    first = &t->by_key[key_bucket(key)];
    inode->next_by_key = *first;
    *first = inode;
    t->inode_count++;
    return inode;
}

/* ---- inodes ---- */

int share_tables_set_root(struct share_tables *t, const struct share_inode_key *key)
{
    struct share_inode *root = inode_add(t, key, FUSE_ROOT_ID);

    if (root == NULL)
        return -ENOMEM;
    /* it was never looked up, and is never forgotten */
    root->lookups = 1;
    root->refs = 1;
    return 0;
}

int share_inode_learn(struct share_tables *t, const struct share_inode_key *key,
                      struct share_inode **out)
{
    int rc = 0;

    pthread_mutex_lock(&t->lock);
    struct share_inode *inode = inode_find_key(t, key);
    bool is_new = inode == NULL;
    if (is_new && t->inode_count >= t->inodes_max)
        rc = -ENFILE;
    else if (is_new && (inode = inode_add(t, key, ++t->last_id)) == NULL)
        rc = -ENOMEM;
    if (rc == 0) {
        if (inode->lookups++ == 0)
            inode->refs++;
        inode->refs++;
    }
    pthread_mutex_unlock(&t->lock);
    if (!is_new || rc != 0)
        close(key->fd);
    *out = rc == 0 ? inode : NULL;
    return rc;
}

struct share_inode *share_inode_get(struct share_tables *t, uint64_t id)
{
    pthread_mutex_lock(&t->lock);
    struct share_inode *inode = inode_find(t, id);
    if (inode != NULL)
        inode->refs++;
    pthread_mutex_unlock(&t->lock);
    return inode;
}

void share_inode_put(struct share_tables *t, struct share_inode *inode)
{
    pthread_mutex_lock(&t->lock);
    inode = inode_unref(t, inode, 1);
    pthread_mutex_unlock(&t->lock);
    free_inode(inode);
}

void share_inode_forget(struct share_tables *t, uint64_t id, uint64_t lookups)
{
    if (id == FUSE_ROOT_ID)
        return;
    pthread_mutex_lock(&t->lock);
    struct share_inode *inode = inode_find(t, id);
    if (inode != NULL) {
        inode->lookups -= MIN(lookups, inode->lookups);
        inode = inode->lookups == 0 ? inode_unref(t, inode, 1) : NULL;
    }
    pthread_mutex_unlock(&t->lock);
    free_inode(inode);
}

/* ---- files ---- */

/* Under the lock, as inode_unref: for free_file. *inode: for free_inode. */
static struct share_file *file_unref(struct share_tables *t, struct share_file *file,
                                     struct share_inode **inode)
{
    *inode = NULL;
    if (--file->refs != 0)
        return NULL;
    struct share_file **p = &t->files[bucket(file->id)];
    while (*p != file)
        p = &(*p)->next;
    *p = file->next;
    t->file_count--;
    *inode = inode_unref(t, file->inode, 1);
    return file;
}

static void free_file(struct share_file *file)
{
    if (file == NULL)
        return;
    close(file->fd);
    pthread_mutex_destroy(&file->position_lock);
    free(file);
}

static struct share_file *file_find(const struct share_tables *t, uint64_t id, uint64_t node)
{
    struct share_file *file = t->files[bucket(id)];

    while (file != NULL && file->id != id)
        file = file->next;
    return file != NULL && file->is_open && file->inode->id == node ? file : NULL;
}

int share_file_add(struct share_tables *t, struct share_inode *inode, int fd, uint64_t *id)
{
    struct share_file *file = calloc(1, sizeof(*file));
    int rc = file == NULL ? -ENOMEM : 0;

    pthread_mutex_lock(&t->lock);
    if (rc == 0 && t->file_count >= t->files_max)
        rc = -ENFILE;
    if (rc == 0) {
        *file = (struct share_file){
            .id = ++t->last_id, .fd = fd, .inode = inode, .refs = 1, .is_open = true};
        pthread_mutex_init(&file->position_lock, NULL);
        inode->refs++;
        struct share_file **first = &t->files[bucket(file->id)];
        file->next = *first;
        *first = file;
        t->file_count++;
        *id = file->id;
    }
    pthread_mutex_unlock(&t->lock);
    if (rc != 0) {
        close(fd);
        free(file);
    }
    return rc;
}

struct share_file *share_file_get(struct share_tables *t, uint64_t id, uint64_t node)
{
    pthread_mutex_lock(&t->lock);
    struct share_file *file = file_find(t, id, node);
    if (file != NULL)
        file->refs++;
    pthread_mutex_unlock(&t->lock);
    return file;
}

void share_file_put(struct share_tables *t, struct share_file *file)
{
    struct share_inode *inode;

    pthread_mutex_lock(&t->lock);
    file = file_unref(t, file, &inode);
    pthread_mutex_unlock(&t->lock);
    free_file(file);
    free_inode(inode);
}

bool share_file_ref(struct share_tables *t, struct share_file *file)
{
    pthread_mutex_lock(&t->lock);
    bool is_open = file->is_open;
    file->refs += is_open;
    pthread_mutex_unlock(&t->lock);
    return is_open;
}

bool share_file_release(struct share_tables *t, uint64_t id, uint64_t node)
{
    struct share_inode *inode = NULL;
    struct share_file *file;
    bool is_there;

    pthread_mutex_lock(&t->lock);
    file = file_find(t, id, node);
    is_there = file != NULL;
    if (is_there) {
        file->is_open = false;
        file = file_unref(t, file, &inode);
    }
    pthread_mutex_unlock(&t->lock);
    free_file(file);
    free_inode(inode);
    return is_there;
}

/* ---- all of it ---- */

int share_tables_init(struct share_tables *t, unsigned descriptors_max)
{
    pthread_mutex_init(&t->lock, NULL);
    t->last_id = FUSE_ROOT_ID;
    /* a guest caches many names, and has few files open */
    t->files_max = descriptors_max / 4;
    t->inodes_max = descriptors_max - t->files_max;
    return 0;
}

/* The first file that is open, or inode but the root that is looked up, of a bucket. */
static uint64_t first_file(const struct share_tables *t, unsigned at, uint64_t *node)
{
    for (const struct share_file *f = t->files[at]; f != NULL; f = f->next)
        if (f->is_open) {
            *node = f->inode->id;
            return f->id;
        }
    return 0;
}

static uint64_t first_inode(const struct share_tables *t, unsigned at)
{
    for (const struct share_inode *i = t->by_id[at]; i != NULL; i = i->next_by_id)
        if (i->lookups != 0 && i->id != FUSE_ROOT_ID)
            return i->id;
    return 0;
}

/* By number, and each as the guest would: others may use the tables meanwhile. */
void share_tables_clear(struct share_tables *t)
{
    for (unsigned at = 0; at < SHARE_BUCKETS; at++) {
        uint64_t id, node;
        for (;;) {
            pthread_mutex_lock(&t->lock);
            id = first_file(t, at, &node);
            pthread_mutex_unlock(&t->lock);
            if (id == 0)
                break;
            share_file_release(t, id, node);
        }
        for (;;) {
            pthread_mutex_lock(&t->lock);
            id = first_inode(t, at);
            pthread_mutex_unlock(&t->lock);
            if (id == 0)
                break;
            share_inode_forget(t, id, UINT64_MAX);
        }
    }
}

void share_tables_fini(struct share_tables *t)
{
    share_tables_clear(t);
    struct share_inode *root = share_inode_get(t, FUSE_ROOT_ID);
    if (root != NULL) {
        pthread_mutex_lock(&t->lock);
        root->lookups = 0;
        root = inode_unref(t, root, 2);
        pthread_mutex_unlock(&t->lock);
        free_inode(root);
    }
    pthread_mutex_destroy(&t->lock);
}
