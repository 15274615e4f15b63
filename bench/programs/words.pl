# An interpreter at work: hashes, sorting, regular expressions, string building.
# No module: only the interpreter is in the guest.
my ($seed, %count, @list) = (1);
for my $i (1 .. 30000) {
    $seed = ($seed * 1103515245 + 12345) % 2147483648;
    my $word = join '', map { chr(97 + ($seed >> (3 + 4 * $_)) % 26) } 0 .. 3;
    $count{$word}++;
    push @list, $word if $word =~ /^[a-m].*[aeiou]$/;
}
my @top = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
my $text = join ' ', @list;
my $changed = ($text =~ s/\b(\w)(\w+)\b/\u$1$2/g);
print "$top[0] $count{$top[0]} $changed ", unpack('%32C*', $text), "\n";
