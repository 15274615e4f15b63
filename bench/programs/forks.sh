# A shell script as they are: substitutions, pipelines, small programs.
i=0
while [ $i -lt 20 ]; do
    a=$(echo "line $i" | $BUSYBOX sed 's/line/word/' | $BUSYBOX tr a-z A-Z)
    b=$(printf '%s\n' c b a "$i" | $BUSYBOX sort | $BUSYBOX tail -n 1)
    all="$all$a$b"
    i=$((i + 1))
done
echo "$all" | $BUSYBOX md5sum
